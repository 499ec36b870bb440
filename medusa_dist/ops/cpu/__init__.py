"""Operations for CPUs: packed weights, compiled loops, threads, memory pages."""
