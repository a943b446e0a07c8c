"""Run folders, checkpoints and weights, without Lightning."""
