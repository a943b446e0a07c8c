"""Write with a trained model: `python sample.py runs/demo --prompt "def " --max_new_tokens 200 --num_samples 3`."""

from minigpt import cli
from minigpt.commands import sample as main

if __name__ == "__main__":
    cli.run(main, outlives_reader=False)
