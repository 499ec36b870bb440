"""What rank 0 keeps on the host: sequences, KV blocks, the waiting queue, limits. No tensors."""
