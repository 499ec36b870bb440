"""OpenAI-compatible HTTP routes over any object with `generate`, `abort` and `health`."""
