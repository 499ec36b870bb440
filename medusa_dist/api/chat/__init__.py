"""Chat answers: tools and reasoning, the message, the response."""
