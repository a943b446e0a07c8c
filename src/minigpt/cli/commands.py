"""The commands `train` and `sample`: arguments -> a run, arguments -> text; nothing heavy is imported before it must.

train.py, sample.py and `python -m minigpt` call them.
"""

from __future__ import annotations

from pathlib import Path

from minigpt.cli import parsing


def train(arguments: list[str], program: str = "train.py") -> None:
    """Parse, then train.

    Args:
        arguments: of the command line.
        program: how the user calls it, for --help.
    """
    config, resume = parsing.parse_training(arguments, program)

    from minigpt.training.run import train

    train(config, resume)


def sample(arguments: list[str], program: str = "sample.py") -> None:
    """Parse, open the model, write in the way that is asked for. Lightning is not needed and not imported.

    Args:
        arguments: of the command line.
        program: how the user calls it, for --help.
    """
    config = parsing.parse_sampling(arguments, program)
    if config.prompts is not None:
        from minigpt.generation.modes.texts_file import run

        run(config, parsing.read_text(config.prompts, "--prompts"), parsing.change)
        return
    prompt = config.prompt if config.prompt_file is None else parsing.read_text(config.prompt_file, "--prompt_file")

    from minigpt.files import note, require_page, write_text
    from minigpt.generation.generator import Writer

    def load(path: str) -> Writer:
        return Writer.load(path, config.device, int8=config.int8, compile=config.compile)

    if config.interactive:
        from minigpt.generation.modes.interactive import converse

        converse(load(config.run), prompt, config, parsing.change)
    elif config.compare is not None:
        from minigpt.generation.modes.side_by_side import compare

        compare((load(config.run), load(config.compare)), prompt, config)
    elif config.explain is not None:
        from minigpt.generation.modes.terminal import show
        from minigpt.pages.explanation import explain
        from minigpt.runs.folder import name_of

        require_page(Path(config.explain))
        writer = load(config.run)
        prompt = writer.first_prompt if prompt is None else prompt
        written, page = explain(writer, prompt, config, title=name_of(config.run))
        write_text(Path(config.explain), page)  # before the text is shown, which ends with whoever reads it
        show(f"{prompt}{written.text}\n")
        note(f"{config.explain}: why each of these {len(written.tokens)} tokens was written")
    elif config.checkpoints is not None:
        from minigpt.pages.film import film

        require_page(Path(config.checkpoints))
        write_text(Path(config.checkpoints), film(config.run, prompt, config, config.device))
        note(f"{config.checkpoints}: what each checkpoint of {config.run} writes")
    else:
        from minigpt.generation.modes.terminal import write

        write(load(config.run), prompt, config)
