"""What the translations between other HTTP APIs and chat completions have in common."""
