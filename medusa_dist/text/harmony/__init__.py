"""Harmony, the answers of gpt-oss: messages in channels, each with a header."""
