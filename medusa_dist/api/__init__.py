"""HTTP words: OpenAI's routes over any object with `generate`, `abort` and `health`."""
