"""Write with a trained model, as `minigpt sample`: `python sample.py runs/demo --prompt "def "`."""

import sys

sys.path.append(__file__.removesuffix("sample.py") + "src")  # where minigpt is not installed
from minigpt.__main__ import main

if __name__ == "__main__":
    main("sample")
