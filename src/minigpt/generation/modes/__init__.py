"""Ways to write: in the terminal, interactively, from a file of prompts, two models side by side."""
