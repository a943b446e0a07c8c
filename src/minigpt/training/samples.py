"""The callback that generates text at each validation, and measures how much of it is copied from the train text."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from minigpt.config import Config
from minigpt.data.answers import prompt_form
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError
from minigpt.files import shown, write_text
from minigpt.generation.generator import Writer
from minigpt.generation.text import encode_prompt
from minigpt.inspection.capture import evaluation_mode
from minigpt.pages.run_record import copied_in_words
from minigpt.runs.folder import RunFolder
from minigpt.training.callbacks import metrics_of
from minigpt.training.copied import Copied, find_copied
from minigpt.training.dashboards import log_table
from minigpt.training.distributed import gather_model
from minigpt.training.module import TrainingModule


class Samples(Callback):
    """Generates text from fixed prompts at each validation and writes it to a file and the loggers.

    The file begins with a line that says how much of the samples is copied from the train text, unless that is a
    stream, of which nothing is kept.
    """

    def __init__(self, folder: RunFolder, config: Config, data: PreparedData) -> None:
        """Raises:
        UserError: a prompt that the tokenizer cannot encode or that exceeds the context length.
        """
        self.folder, self.settings, self.tokenizer = folder, config.sampling, data.tokenizer
        self.from_start, self.prompts = config.data.mode == "examples", config.sampling.prompts or []
        self.form = prompt_form(config.data)
        self.train = None if config.data.streaming else data.train.tokens
        for i, prompt in enumerate(self.prompts):
            try:
                encode_prompt(
                    data.tokenizer, self.form(prompt), config.model.context_length, from_start=self.from_start
                )
            except UserError as error:
                raise UserError(
                    f"sampling.prompts[{i}]={prompt!r}: {error}; or remove sampling.prompts to use beginnings of the "
                    "val text"
                ) from None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not self.prompts:
            return
        assert isinstance(pl_module, TrainingModule)
        model = gather_model(pl_module.model)
        if not trainer.is_global_zero:
            return
        with evaluation_mode(model):
            # Each prompt gets the seed of the settings, so adding a prompt does not change another's sample.
            writer = Writer(model, self.tokenizer, from_start=self.from_start, form=self.form)
            samples = writer.generate_many(self.prompts, self.settings)
        step = trainer.global_step
        rows = [(step, prompt, each.prompt + each.text) for prompt, each in zip(self.prompts, samples, strict=True)]
        log_table(trainer.loggers, "samples", ("step", "prompt", "text"), rows, step)
        content = "".join(f"──── step {step}, prompt {prompt!r}\n{text}\n\n" for _, prompt, text in rows)
        first_line = ""
        if self.train is not None:
            copied = find_copied([each.tokens for each in samples], self.train)
            metrics_of(trainer).write(trainer, step, _numbers(copied))
            first_line = f"{_in_words(copied, len(self.train))}\n\n"
        write_text(self.folder.samples(step), first_line + content)
        trainer.print(shown(content.split("\n\n──── ")[0].rstrip()))


def _numbers(copied: Copied) -> dict[str, float]:
    share = {} if copied.share is None else {"samples/copied_20gram_share": copied.share}
    return {"samples/longest_copied_tokens": copied.longest_tokens, **share}


def _in_words(copied: Copied, n_train: int) -> str:
    part = "" if copied.n_searched == n_train else f" (searched: {copied.n_searched:,} of its {n_train:,} tokens)"
    return copied_in_words(copied.longest_tokens, copied.share) + part
