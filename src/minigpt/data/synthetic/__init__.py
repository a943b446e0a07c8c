"""Texts with ground truth: which span refers to which earlier one."""
