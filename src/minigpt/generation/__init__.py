"""Text generation: a model and a prompt -> text."""
