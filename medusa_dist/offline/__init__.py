"""Parts of `LLM`: vLLM's prompts, results and arguments."""
