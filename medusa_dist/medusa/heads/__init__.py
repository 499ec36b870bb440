"""Draft heads: their forms, file format and training loss."""
