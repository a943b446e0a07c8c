"""The default mode of `sample.py`: streams samples to the terminal and reports tokens per second."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minigpt.files import note, shown

if TYPE_CHECKING:  # imports torch, which is loaded only with a model
    from minigpt.config import GenerationConfig, SampleConfig
    from minigpt.generation.generator import Writer
    from minigpt.generation.text import Prompt


class Speed:
    """Tokens and seconds of generation, excluding loading and time in the consumer of the stream."""

    def __init__(self) -> None:
        self.n_tokens = 0
        """Tokens drawn, end-of-text included."""
        self.seconds = 0.0
        self.prefill_seconds = 0.0
        """Part of `seconds` before the first draw of each sample."""

    def stream(self, writer: Writer, prompt: Prompt, config: GenerationConfig) -> Iterator[str]:
        """`Writer.stream`, measured."""
        read = False

        def watch(*_: Any) -> None:
            nonlocal read
            self.n_tokens += 1
            if not read:
                self.prefill_seconds += time.perf_counter() - started
            read = True

        texts = writer.stream(prompt, config, watch=watch)
        while True:
            started = time.perf_counter()
            try:
                text = next(texts)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield text

    def __str__(self) -> str:
        rate = self.n_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.n_tokens:,} tokens in {self.seconds:.2f} s: {rate:,.0f} tokens/s "
            f"(prompt read in {self.prefill_seconds:.3f} s)"
        )


def show(text: str) -> None:
    """Print text at once; on a terminal, control characters are made visible."""
    sys.stdout.write(shown(text))
    sys.stdout.flush()


def write(writer: Writer, prompt: str | None, config: SampleConfig) -> None:
    """Print prompt and continuation as tokens are drawn, for each sample.

    Args: a prompt of None takes the run's first sampling prompt.

    Raises:
        UserError: the prompt or a setting is invalid; nothing is printed then.
    """
    speed, prompt = Speed(), writer.first_prompt if prompt is None else prompt
    for number in range(config.num_samples):
        settings = config.of_sample(number)
        texts = speed.stream(writer, prompt, settings)
        first = next(texts, "")  # raises for an invalid prompt before anything is printed
        if config.num_samples > 1:
            print(f"──── sample {number + 1} of {config.num_samples}, seed {settings.seed}")
        for text in itertools.chain([writer.form(prompt), first], texts):
            show(text)
        print(flush=True)
    note(speed)
