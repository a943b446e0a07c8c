"""Write with a trained model: `python sample.py runs/demo --prompt "def " --max_new_tokens 200 --num_samples 3`."""

import sys
from pathlib import Path

try:
    from minigpt.cli import parsing
    from minigpt.cli.commands import sample as main
except ModuleNotFoundError as error:
    sys.path.append(str(Path(__file__).resolve().parent / "src"))  # minigpt itself may be what is missing
    from minigpt.environment import refuse_missing

    refuse_missing(error)


if __name__ == "__main__":
    parsing.run(main, outlives_reader=False)
