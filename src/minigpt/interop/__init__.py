"""Other programs' weights and tokenizers, in and out."""
