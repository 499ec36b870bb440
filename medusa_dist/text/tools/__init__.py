"""Answers with reasoning and tool calls: formats, grammars, and reading them. No torch."""
