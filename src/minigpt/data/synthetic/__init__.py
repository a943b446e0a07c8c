"""Synthetic texts with ground truth: which span refers to which earlier span."""
