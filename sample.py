"""Write with a trained model: `python sample.py runs/demo --prompt "def " --max_new_tokens 200 --num_samples 3`."""

from minigpt import cli


def main(arguments: list[str]) -> None:
    """Parse, open the model, write in the way that is asked for. Lightning is not needed and not imported."""
    config = cli.parse_sampling(arguments)
    if config.prompts is not None:
        from minigpt.generation.texts_file import run

        run(config, cli.read_text(config.prompts, "--prompts"), cli.change)
        return
    prompt = config.prompt if config.prompt_file is None else cli.read_text(config.prompt_file, "--prompt_file")

    from minigpt.generation.writer import Writer

    writer = Writer.load(config.run, config.device)
    if config.interactive:
        from minigpt.generation.interactive import converse

        converse(writer, prompt, config, cli.change)
    elif config.compare is not None:
        from minigpt.generation.side_by_side import compare

        compare((writer, Writer.load(config.compare, config.device)), prompt, config)
    else:
        from minigpt.generation.terminal import write

        write(writer, prompt, config)


if __name__ == "__main__":
    cli.run(main)
