"""`python -m minigpt train|sample ...`: the commands of train.py and sample.py, wherever minigpt is installed."""

import sys

from minigpt.cli import commands, parsing

PROGRAM = "python -m minigpt"
COMMANDS = {
    "train": (commands.train, "Train a GPT on your text."),
    "sample": (commands.sample, "Write text with a trained model."),
}


def main(arguments: list[str]) -> None:
    """Let one of the commands take the other arguments, or say which there are."""
    name, *rest = arguments or ["--help"]
    if name in {"-h", "--help"}:
        lines = [f"  {each:<8}{what}" for each, (_, what) in COMMANDS.items()]
        print("\n".join([f"usage: {PROGRAM} COMMAND ...; each has its own --help", *lines]))
        return
    parsing.require_command(name, COMMANDS, PROGRAM)
    run, _ = COMMANDS[name]
    run(rest, f"{PROGRAM} {name}")


if __name__ == "__main__":
    parsing.run(main, outlives_reader=sys.argv[1:2] != ["sample"])
