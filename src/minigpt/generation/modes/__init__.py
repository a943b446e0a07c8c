"""The modes of `sample.py`: terminal, interactive, a file of prompts, two models side by side."""
