"""OpenAI's Batch API: its routes, and what runs batches in a replica."""
