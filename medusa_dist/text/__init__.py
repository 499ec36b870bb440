"""Text on its way in and out: detokenizer, stop strings, chat templates. No torch."""
