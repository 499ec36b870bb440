"""Model sources: hub id, folder, GGUF file, demo model."""
