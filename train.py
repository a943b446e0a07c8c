"""Train a GPT: `python train.py --config configs/demo.yaml --model.n_layer 6`."""

from minigpt import cli
from minigpt.commands import train as main

if __name__ == "__main__":
    cli.run(main)
