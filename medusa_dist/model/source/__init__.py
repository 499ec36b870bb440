"""Where a model comes from: hub id, folder, GGUF file, the demo."""
