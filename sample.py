"""Write with a trained model: `python sample.py runs/demo --prompt "def " --max_new_tokens 200 --num_samples 3`."""

import itertools
import sys

from minigpt import cli


def main(arguments: list[str]) -> None:
    """Parse, open the model, write. Lightning is not needed and not imported."""
    config = cli.parse_sampling(arguments)
    prompt = config.prompt if config.prompt_file is None else cli.read_text(config.prompt_file, "--prompt_file")

    from minigpt.generation.writer import Writer

    writer = Writer.load(config.run, config.device)
    for number in range(config.num_samples):
        texts = writer.stream(prompt, config, seed=config.seed + number)
        first = next(texts, "")  # a prompt that is refused is refused before anything is printed
        if config.num_samples > 1:
            print(f"──── sample {number + 1} of {config.num_samples}, seed {config.seed + number}")
        for text in itertools.chain([prompt, first], texts):
            sys.stdout.write(text)
            sys.stdout.flush()
        print(flush=True)


if __name__ == "__main__":
    cli.run(main)
