"""A model and a prompt -> text."""
