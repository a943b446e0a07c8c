"""Train a GPT: `python train.py --config configs/demo.yaml --model.n_layer 6`."""

import sys
from pathlib import Path

try:
    from minigpt.cli import parsing
    from minigpt.cli.commands import train as main
except ModuleNotFoundError as error:
    sys.path.append(str(Path(__file__).resolve().parent / "src"))  # minigpt itself may be what is missing
    from minigpt.environment import refuse_missing

    refuse_missing(error)


if __name__ == "__main__":
    parsing.run(main)
