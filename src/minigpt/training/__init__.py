"""Batches -> loss -> optimizer steps -> a run folder, through Lightning."""
