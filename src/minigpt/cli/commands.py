"""The commands of `minigpt`. Each gets its parsed arguments, and imports what is heavy itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jsonargparse import ArgumentParser

from minigpt.cli import parsing
from minigpt.cli.variants import load_variants
from minigpt.config import (
    AttributeConfig,
    CircuitsConfig,
    CompareConfig,
    Config,
    DoctorConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    LensConfig,
    LiveConfig,
    PatchConfig,
    ProofConfig,
    ReportConfig,
    SampleConfig,
    ShareConfig,
    StudyConfig,
)
from minigpt.environment import without_collecting
from minigpt.errors import UserError
from minigpt.files import reason, shown

if TYPE_CHECKING:  # loads numpy
    from minigpt.data.shards import PreparedData


def train(config: Config, resume: Path | None) -> None:
    """Train."""
    with without_collecting():
        from minigpt.training.run import train

    train(config, resume)


def sample(config: SampleConfig) -> None:
    """Load the model and generate in the chosen mode. Lightning is not imported."""
    if config.prompts is not None:
        from minigpt.generation.modes.texts_file import run

        run(config, read_text(config.prompts, "--prompts"), parsing.change)
        return
    prompt = config.prompt if config.prompt_file is None else read_text(config.prompt_file, "--prompt_file")

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
        write_text(Path(config.explain), page)  # before printing, which a closed pipe would end
        show(f"{written.prompt}{written.text}\n")
        note(f"{config.explain}: explains each of these {len(written.tokens)} tokens")
    elif config.checkpoints is not None:
        from minigpt.pages.film import film

        require_page(Path(config.checkpoints))
        write_text(Path(config.checkpoints), film(config.run, prompt, config, config.device))
        note(f"{config.checkpoints}: samples of each checkpoint of {config.run}")
    else:
        from minigpt.generation.modes.terminal import write

        write(load(config.run), prompt, config)


def read_text(name: str, option: str) -> str:
    """Read a whole UTF-8 file, or standard input ('-').

    Raises:
        UserError: it cannot be read, naming the option and the file.
    """
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8")
    except OSError as error:
        raise UserError(f"{option} {name}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {name}: not UTF-8 text (byte {error.start})") from None


def inspect(config: InspectConfig) -> None:
    """Capture attention, write the page, print the tables."""
    text = config.text if config.file is None else read_text(config.file, "--file")

    from minigpt.pages.model_report import write_inspection

    print(shown(write_inspection(config, text)))


def live(config: LiveConfig) -> None:
    """Write a page in which the model itself runs."""
    from minigpt.lab.live import write_live

    print(shown(write_live(config)))


def report(config: ReportConfig) -> None:
    """Write what a run left into one HTML file. Neither torch nor Lightning is imported."""
    from minigpt.pages.report import report_run

    print(shown(report_run(config)))


def share(config: ShareConfig) -> None:
    """Make one file of a run; or print the card of such a file, for which torch is not loaded."""
    if not Path(config.run).is_file():
        from minigpt.lab.share import share_run

        print(shown(share_run(config)))
        return
    from minigpt.runs.card import read_card

    if config.out is not None:
        raise UserError(
            f"out={config.out}: is for the file made of a run folder, and {config.run} is a file: leave --out away"
        )
    print(read_card(Path(config.run)))


def export(config: ExportConfig) -> None:
    """Write a model in another program's format."""
    from minigpt.lab.export import export_run

    print(shown(export_run(config)))


def import_(config: ImportConfig) -> None:
    """Make a run folder of another program's model."""
    from minigpt.lab.importing import import_model

    print(shown(import_model(config)))


def prepare(config: Config) -> None:
    """Tokenise the text, and print its size and folder."""
    data = _prepared(config)
    print(shown(f"train  {data.train}\nval    {data.val}\n-> {data.folder}"))


def peek(config: Config) -> None:
    """Tokenise the text, and print what is in it."""
    data = _prepared(config)

    from minigpt.data.peek import peek as describe  # loads torch

    print(shown(describe(data, config)))


def _prepared(config: Config) -> PreparedData:
    from minigpt.data.open import open_data
    from minigpt.data.sources.stdin import keep_stdin

    data = open_data(keep_stdin(config.data))
    if config.data.streaming:
        print("the beginning of the stream:")
    return data


def compare(config: CompareConfig) -> None:
    """Train what is not trained yet, print the table."""
    variants = load_variants(config)

    from minigpt.lab.compare import compare_variants

    compare_variants(config, variants)


def doctor(config: Config, resume: Path | None, asked: DoctorConfig) -> None:
    """Print what this machine can do and what a run would need; exit code 2 where it would fail.

    With a device that is not here: what the run would take there, by arithmetic.
    """
    if asked.for_device is not None:
        from minigpt.lab.estimate import estimate

        estimate(config, asked.for_device)
        return
    from minigpt.lab.doctor import diagnose

    diagnose(config, resume)


def prove_resume(config: Config, asked: ProofConfig) -> None:
    """Train, kill, resume, compare; exit code 1 where the resumed run differs."""
    from minigpt.lab.prove_resume import prove_and_print

    prove_and_print(config, asked)


def lens(config: LensConfig) -> None:
    """Print what each layer would predict."""
    from minigpt.lab.lens import read_lens

    print(shown(read_lens(config)))


def attribute(config: AttributeConfig) -> None:
    """Print what each component adds to a logit or a loss."""
    from minigpt.lab.attribute import attribute as take_apart

    print(shown(take_apart(config)))


def patch(config: PatchConfig) -> None:
    """Patch activations of a clean prompt into a corrupted one, write the page, print the strongest."""
    from minigpt.lab.patch import write_patches

    print(shown(write_patches(config)))


def circuits(config: CircuitsConfig) -> None:
    """Print the heads that compose, or the parts of a head's score."""
    from minigpt.lab.circuits import find_circuits

    print(shown(find_circuits(config)))


def study(config: StudyConfig) -> None:
    """Run an experiment about attention, or list all."""
    from minigpt.lab.study import write_study

    print(shown(write_study(config)))


class Command(NamedTuple):
    """A command of `minigpt`."""

    run: Callable[..., None]
    what: str
    """One line of help."""
    schema: type = Config
    """The dataclass of its options; Config stands for recipes and the settings of a run."""
    resumes: bool = False
    """With Config: takes --resume."""
    more: type | None = None
    """With Config: the dataclass of further options; `run` gets it last."""
    several: Sequence[str] = ()
    """With another schema: options that take several words."""

    def parser(self, program: str) -> ArgumentParser:
        """The parser of its arguments."""
        if self.schema is Config:
            return parsing.config_parser(program, self.what, resumes=self.resumes, more=self.more)
        return parsing.options_parser(self.schema, program, self.what, self.several)

    def __call__(self, arguments: Sequence[str], program: str) -> None:
        """Parse the arguments, and run.

        Raises:
            UserError: invalid arguments, or what the command refuses.
        """
        if self.schema is not Config:
            self.run(parsing.parse_options(arguments, self.schema, program, self.what, self.several))
            return
        self.run(*parsing.parse_training(arguments, program, self.what, resumes=self.resumes, more=self.more))


COMMANDS = {
    "train": Command(train, "Train a GPT on your text.", resumes=True),
    "sample": Command(sample, "Write text with a trained model.", SampleConfig),
    "inspect": Command(inspect, "Show what the attention of a trained model does.", InspectConfig),
    "live": Command(live, "Make one HTML file in which the model runs while you type.", LiveConfig),
    "report": Command(report, "Make one HTML file of what a run left.", ReportConfig),
    "share": Command(
        share, "Make one file of a run for a friend: weights, tokenizer, card; or print the card of one.", ShareConfig
    ),
    "export": Command(export, "Write a model for other programs: transformers, vLLM, llama.cpp, Ollama.", ExportConfig),
    "import": Command(import_, "Make a run of another program's model, as hf:gpt2 or a folder.", ImportConfig),
    "prepare": Command(prepare, "Tokenise a text into a folder, once; training then starts at once."),
    "peek": Command(peek, "Show what is in a text: how much, which tokens, and what a batch looks like."),
    "compare": Command(
        compare,
        "Train recipes, or variants of one, on the same text, seeds and budget, and make one table of them.",
        CompareConfig,
        several=("recipes", "seeds"),
    ),
    "doctor": Command(
        doctor,
        "Say what this machine can do, and what a run would need; or what it would take on another device.",
        resumes=True,
        more=DoctorConfig,
    ),
    "prove-resume": Command(
        prove_resume, "Kill and resume a run, and compare it with one that was never stopped.", more=ProofConfig
    ),
    "lens": Command(lens, "Show what each layer of a model would predict next.", LensConfig),
    "attribute": Command(attribute, "Show what each head and MLP adds to a logit or a loss.", AttributeConfig),
    "patch": Command(patch, "Show which activations restore the answer to a corrupted prompt.", PatchConfig),
    "circuits": Command(
        circuits, "Show which heads compose with earlier heads, and why a query matches a key.", CircuitsConfig
    ),
    "study": Command(study, "Try a claim about attention in a small experiment, or list all.", StudyConfig),
}
