"""A batch of tokens -> logits. Knows no files, no Lightning and no inspection."""
