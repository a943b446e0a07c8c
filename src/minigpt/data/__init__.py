"""Text -> tokens -> batches. Imports neither the model nor Lightning."""
