"""Write with a trained model: `python sample.py runs/demo --prompt "def " --max_new_tokens 200 --num_samples 3`."""

import itertools
import sys

from minigpt import cli


def main(arguments: list[str]) -> None:
    """Parse, open the model, write. Lightning is not needed and not imported."""
    config = cli.parse_sampling(arguments)
    prompt = config.prompt if config.prompt_file is None else cli.read_text(config.prompt_file, "--prompt_file")

    from minigpt.checkpoint import load_model
    from minigpt.generation.generate import continue_text

    loaded = load_model(config.run, config.device)
    for number in range(config.num_samples):
        texts = continue_text(
            loaded.model,
            loaded.tokenizer,
            prompt,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            seed=config.seed + number,
            from_start=loaded.config.data.mode == "examples",
        )
        first = next(texts, "")  # a prompt that is refused is refused before anything is printed
        if config.num_samples > 1:
            print(f"──── sample {number + 1} of {config.num_samples}, seed {config.seed + number}")
        for text in itertools.chain([prompt, first], texts):
            sys.stdout.write(text)
            sys.stdout.flush()
        print(flush=True)


if __name__ == "__main__":
    cli.run(main)
