"""The terminal's progress bar, and a redirection that prints other output above it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from minigpt.training.callbacks import metrics_of
from minigpt.training.lightning_compat import Tqdm, open_bars


def can_show(stream: TextIO) -> bool:
    """Whether a bar can be redrawn on this stream: a terminal, or the output of a notebook's cell."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without "Epoch 0", as a run is one epoch. Without a terminal, `Metrics` prints lines instead."""

    # Lightning's format without steps per second, so that both losses and tokens per second fit in 80 columns.
    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._terminal: TextIO = sys.stdout

    @contextlib.contextmanager
    def below_what_is_printed(self) -> Iterator[None]:
        """Inside the context, prints, warnings and logging handlers write above the bar, which is redrawn below them.

        Without it, their lines would start at the end of the bar's line.
        """
        self._terminal = sys.stdout
        wrapped = {each: _AboveTheBar(each, self._terminal) for each in (sys.stdout, sys.stderr) if can_show(each)}
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        handlers = [
            handler
            for logger in loggers
            for handler in getattr(logger, "handlers", [])  # logging's placeholders have none
            # Handlers without a stream of their own look up sys.stderr, which is redirected below.
            if isinstance(handler, logging.StreamHandler) and vars(handler).get("stream") in wrapped
        ]
        with contextlib.ExitStack() as undo:
            for handler in handlers:
                undo.callback(handler.setStream, handler.setStream(wrapped[handler.stream]))
            undo.enter_context(contextlib.redirect_stdout(wrapped.get(sys.stdout, sys.stdout)))
            undo.enter_context(contextlib.redirect_stderr(wrapped.get(sys.stderr, sys.stderr)))
            for each in wrapped.values():
                undo.callback(each.flush)
            undo.callback(self._close)
            yield

    def _close(self) -> None:
        """Close the bars, however training ends, so that the next output starts on a new line."""
        for bar in open_bars(self):
            bar.close()

    def init_sanity_tqdm(self) -> Any:
        with contextlib.redirect_stdout(self._terminal):
            return super().init_sanity_tqdm()

    def init_train_tqdm(self) -> Any:
        with contextlib.redirect_stdout(self._terminal):
            bar = super().init_train_tqdm()
        bar.mininterval = 0.2
        return bar

    def init_validation_tqdm(self) -> Any:
        if not self._terminal.isatty():  # the output of a cell cannot move up a line, so each redraw would be a new one
            return Tqdm(disable=True)
        with contextlib.redirect_stdout(self._terminal):
            return super().init_validation_tqdm()

    def on_train_start(self, trainer: L.Trainer, *given: Any) -> None:
        super().on_train_start(trainer, *given)
        self.on_train_epoch_start(trainer)  # sets the bar's length; Lightning leaves it out where a run is resumed

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(None)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = metrics_of(trainer)
        shown = {
            "train/loss": f"{metrics.train_loss:.3f}",
            "val/loss": f"{metrics.val_loss:.3f}",
            "tokens/s": f"{metrics.tokens_per_second:,.0f}",
        }
        return {name: text for name, text in shown.items() if text != "nan"}


class _AboveTheBar:
    """A terminal stream that writes complete lines above the bar and redraws the bar below them."""

    def __init__(self, stream: TextIO, terminal: TextIO) -> None:
        self._stream, self._terminal, self._begun = stream, terminal, ""

    def write(self, text: str) -> int:
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        self._put(lines + newline)
        return len(text)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""  # an incomplete line, such as a debugger's prompt
        self._put(begun)

    def _put(self, text: str) -> None:
        if text:
            with Tqdm.external_write_mode(file=self._terminal):
                self._stream.write(text)
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
