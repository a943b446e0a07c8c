"""Text -> tokens -> batches. Knows no model and no Lightning."""
