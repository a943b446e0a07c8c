"""Train a GPT, as `minigpt train`: `python train.py demo --model.n_layer 6`."""

import sys

sys.path.append(__file__.removesuffix("train.py") + "src")  # where minigpt is not installed
from minigpt.__main__ import main

if __name__ == "__main__":
    main("train")
