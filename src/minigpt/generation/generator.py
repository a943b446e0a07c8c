"""The Python API of generation: `Writer` turns prompts into text, tokens and log-probabilities, and scores texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from minigpt.config import GenerationConfig
from minigpt.data.answers import AS_IT_IS, PromptForm, prompt_form
from minigpt.data.tokenizers.base import Tokenizer, decode, first_token
from minigpt.errors import UserError
from minigpt.generation.cpu_backend import CPUDecode, can_decode
from minigpt.generation.engine import Reader, Row, Watch, generate
from minigpt.generation.sampling import Generator
from minigpt.generation.text import Prompt, TextStream, TokenHealing, encode_prompt, token_ids, token_texts
from minigpt.runs.loading import LoadedModel, load_model
from minigpt.runs.stored import StoredModel

if TYPE_CHECKING:
    from minigpt.config import GPTConfig
    from minigpt.model.gpt import GPT


@dataclass(frozen=True)
class Completion:
    """A prompt and its generated continuation."""

    prompt: str
    """As text, also where token ids were given; in the form of a run of prompts and answers."""
    prompt_tokens: tuple[int, ...]
    """As the model read them, without spaces at the end of the prompt (token healing)."""
    text: str
    """The generated text alone."""
    tokens: tuple[int, ...]
    """The generated tokens, including those of a stop string."""
    log_probabilities: tuple[float, ...]
    """Of each generated token, in nats, before temperature and filters."""
    ended: str
    """`end_of_text`, `stop`, `stop_token`, `length` or `context`."""
    seed: int


@dataclass(frozen=True)
class Score:
    """Loss of a model on a text."""

    loss: float
    """Mean nats per token."""
    bits_per_byte: float
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Of each token given the previous ones, in nats."""


class Writer:
    """A trained model with its tokenizer, ready to generate and to score text."""

    def __init__(
        self,
        model: GPT | StoredModel,
        tokenizer: Tokenizer,
        *,
        from_start: bool = False,
        reader: Reader | None = None,
        first_prompt: str = "",
        form: PromptForm = AS_IT_IS,
    ) -> None:
        """Wrap a model.

        Args:
            model: in eval mode.
            tokenizer: the one it was trained with.
            from_start: prepend end-of-text to text prompts, for models trained on whole texts (data.mode=examples).
            reader: see `engine.generate`.
            first_prompt: the first of the run's sampling prompts; the default prompt of `sample.py`.
            form: what text prompts are put into, for models trained on prompts and answers (data.answer_column).
        """
        self._model, self.tokenizer, self.from_start, self.reader = model, tokenizer, from_start, reader
        self.first_prompt, self.form = first_prompt, form

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", *, int8: bool = False, compile: bool = False) -> Writer:
        """Open a run folder, a checkpoint or a safetensors file.

        Args:
            path: of one of these.
            device: cpu, cuda, cuda:1, mps.
            int8: quantize weights to int8, on a CPU: half the time per token, for large models only.
            compile: decode with torch.compile, which takes about a minute first. For GPUs: on a CPU it is slower.

        Raises:
            UserError: see `load_model`; or int8 for a model that does not support it.
        """
        loaded = load_model(path, device, opened=compile)
        reader: Reader | None = None
        if int8 and not can_decode(loaded.weights):
            raise UserError(
                f"int8: needs a model with similarity=scaled_dot and without document_mask, on the CPU; {path} is not"
            )
        if int8 and compile:
            raise UserError("int8 and compile are both given: leave one out")
        if int8:
            reader = CPUDecode(loaded.weights, int8=True)
        elif compile:
            from minigpt.generation.model_reader import CompiledDecode

            reader = CompiledDecode(loaded.model)
        return cls.of(loaded, reader)

    @classmethod
    def of(cls, loaded: LoadedModel, reader: Reader | None = None) -> Writer:
        """Wrap a model that is open already, with its run's settings; reader: see `engine.generate`."""
        from_start, prompts = loaded.config.data.mode == "examples", loaded.config.sampling.prompts or []
        first_prompt, form = prompts[0] if prompts else "", prompt_form(loaded.config.data)
        model, tokenizer = loaded.weights, loaded.tokenizer
        return cls(model, tokenizer, from_start=from_start, reader=reader, first_prompt=first_prompt, form=form)

    @property
    def model(self) -> GPT:
        """The model of torch, which is imported for it; what is changed in it counts from then on."""
        return self._model.model if isinstance(self._model, StoredModel) else self._model

    @property
    def model_config(self) -> GPTConfig:
        return self._model.config

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """The weights by their names in `GPT`, with the rows that pad the vocabulary."""
        weights = self._model.weights if isinstance(self._model, StoredModel) else {}  # first: opening drops them
        if isinstance(self._model, StoredModel) and self._model.opened is None:
            return weights
        import torch

        state = self.model.state_dict().items()
        return {name: tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() for name, tensor in state}

    @cached_property
    def token_texts(self) -> list[bytes]:
        return token_texts(self.tokenizer)

    def generate(
        self, prompt: Prompt = "", config: GenerationConfig | None = None, *, watch: Watch | None = None, **changes: Any
    ) -> Completion:
        """Continue a prompt; an empty one starts a new document.

        Args:
            prompt: text; or token ids, as a list or a 1-D tensor, which are read unchanged.
            config: generation settings; the defaults of `sample.py` if None.
            watch: called before each draw, see `engine.Watch`.
            changes: single settings, as in generate("def ", temperature=0, seed=3).

        Raises:
            UserError: the prompt is too long or cannot be encoded, or a setting is invalid.
        """
        config = _changed(config, changes)
        (stream,) = self._streams([prompt], 1, config)
        stream.row.watch = watch
        return self._written([stream], config)[0]

    def generate_many(
        self, prompts: Iterable[Prompt], config: GenerationConfig | None = None, *, num_samples: int = 1, **changes: Any
    ) -> list[Completion]:
        """Continue several prompts as one batch, each num_samples times, with seeds seed, seed + 1, ...

        Returns:
            The samples of the first prompt, then those of the second, ...

        Raises:
            UserError: as for `generate`; or prompts is a single text instead of a list.
        """
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
            raise UserError(f'prompts={prompts!r}: expected a list of prompts, as in generate_many(["def ", "class "])')
        prompts = list(prompts)
        if type(num_samples) is not int or num_samples < 1:
            raise UserError(f"num_samples={num_samples!r}: must be a whole number from 1")
        config = _changed(config, changes)
        return self._written(self._streams(prompts, num_samples, config), config)

    def stream(
        self, prompt: Prompt = "", config: GenerationConfig | None = None, *, watch: Watch | None = None, **changes: Any
    ) -> Iterator[str]:
        """Yield the generated text as tokens are drawn. Arguments and errors as for `generate`."""
        config = _changed(config, changes)
        (stream,) = self._streams([prompt], 1, config)
        stream.row.watch = watch
        return self._run([stream], config)

    def check(self, prompt: Prompt, config: GenerationConfig) -> None:
        """Raise the UserError that `generate` would, without generating."""
        n_tokens = self.tokenizer.vocab_size
        for name in ("forbidden_tokens", "stop_tokens"):
            if wrong := [token for token in getattr(config, name) if not 0 <= token < n_tokens]:
                raise UserError(f"{name}: there is no token {wrong[0]}: the vocabulary has {n_tokens}")
        if len(set(config.forbidden_tokens)) == n_tokens:
            raise UserError("forbidden_tokens: no token is left to draw; leave some out")
        asked = self.form(prompt) if isinstance(prompt, str) else prompt
        encode_prompt(self.tokenizer, asked, self.model_config.context_length, from_start=self.from_start)

    def score(self, text: Prompt) -> Score:
        """Loss of a text, read as the beginning of a document.

        A longer text than the context is scored in windows that overlap by half: each token is predicted from at least
        half a context, or from the beginning of the text.

        Args:
            text: text, or token ids as a list or a 1-D tensor.

        Raises:
            UserError: the text is empty, or cannot be encoded.
        """
        tokens = token_ids(self.tokenizer, text)
        own = [token for token in tokens if token != self.tokenizer.end_of_text]
        n_bytes = len(text.encode(errors="replace") if isinstance(text, str) else self.tokenizer.decode_bytes(own))
        if not n_bytes:
            raise UserError("the text is empty: there is nothing to predict")
        chances = self._log_probabilities([first_token(self.tokenizer), *tokens])
        total = -math.fsum(chances)
        return Score(total / len(tokens), total / math.log(2) / n_bytes, tuple(tokens), tuple(chances))

    def _log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        """Log-probability of every token but the first, in nats, by the same code path that generates."""
        import torch
        import torch.nn.functional as F

        model, T = self.model, self.model_config.context_length
        # Compiled steps are of one token each.
        reader = self.reader if isinstance(self.reader, CPUDecode) and self.reader.ready() else None
        found: list[float] = []
        while len(found) < len(tokens) - 1:
            start = 0 if not found else max(0, len(found) - T // 2)
            inputs, targets = tokens[start : start + T], tokens[start + 1 : start + T + 1]
            inputs = inputs[: len(targets)]
            n_known = len(found) - start  # in both this window and the one before
            with torch.inference_mode():
                if reader is not None:
                    read = reader.read(np.array([inputs]), reader.new_cache(1, len(inputs)), n_wanted=len(inputs))
                    logits = torch.from_numpy(read)
                else:
                    logits = model(torch.tensor([inputs], device=model.token_embedding.weight.device))
                wanted = torch.tensor(targets[n_known:], device=logits.device)
                found += (-F.cross_entropy(logits[0, n_known:].float(), wanted, reduction="none")).tolist()
        return found

    def _streams(self, prompts: Sequence[Prompt], num_samples: int, config: GenerationConfig) -> list[_Stream]:
        # Before spaces are removed, so that messages fit the user's prompt; and all of them before the first is read.
        for prompt in prompts:
            self.check(prompt, config)
        return [
            _Stream(self, prompt, i * num_samples + sample, config.seed + sample, config.stops)
            for i, prompt in enumerate(prompts)
            for sample in range(num_samples)
        ]

    def _written(self, streams: Sequence[_Stream], config: GenerationConfig) -> list[Completion]:
        for _ in self._run(streams, config):
            pass
        return [stream.written() for stream in streams]

    def _run(self, streams: Sequence[_Stream], config: GenerationConfig) -> Iterator[str]:
        """Generate all streams, yielding their text as it is complete."""
        # Token ids beyond the tokenizer's exist where the model's vocab_size is rounded up; they must not be drawn.
        padding = range(self.tokenizer.vocab_size, self.model_config.vocab_size or 0)
        config = dataclasses.replace(
            config,
            forbidden_tokens=[*config.forbidden_tokens, *padding],
            stop_tokens=[*config.stop_tokens, self.tokenizer.end_of_text],
        )
        for rows in generate(self._model, [stream.row for stream in streams], config, self.reader):
            for row in rows:
                if text := streams[row.index].add(row.tokens[-1]):
                    yield text
        for stream in streams:
            if text := stream.end():
                yield text


class _Stream:
    """One sample: its row in the engine, and its text so far."""

    def __init__(self, writer: Writer, prompt: Prompt, index: int, seed: int, stop: Sequence[str]) -> None:
        prompt = writer.form(prompt) if isinstance(prompt, str) else prompt
        tokenizer, kept, spaces = writer.tokenizer, prompt, ""
        if isinstance(prompt, str) and not any(writer.form):  # a form ends where in training an answer's tokens began
            kept = prompt.rstrip(" ") or prompt
            spaces = prompt[len(kept) :]
        elif not isinstance(prompt, str):
            prompt = decode(tokenizer, token_ids(tokenizer, prompt))
        tokens = encode_prompt(tokenizer, kept, writer.model_config.context_length, from_start=writer.from_start)
        self.prompt, self.seed, self.text, self.end_of_text = prompt, seed, "", tokenizer.end_of_text
        self.row = Row(
            tokens,
            Generator(seed),
            index,
            len(tokens),
            restrict=TokenHealing(writer.token_texts, spaces.encode()) if spaces else None,
        )
        self._shown = TextStream(tokenizer, stop, len(spaces))

    def add(self, token: int) -> str:
        text = self._shown.add(token)
        if self._shown.stopped:
            self.row.ended = "stop"
        self.text += text
        return text

    def end(self) -> str:
        text = self._shown.end()
        self.text += text
        return text

    def written(self) -> Completion:
        ended = str(self.row.ended) if self.row.stopped_by != self.end_of_text else "end_of_text"
        read = tuple(self.row.tokens[: self.row.n_prompt])
        tokens, chances = tuple(self.row.drawn), tuple(self.row.log_probabilities)
        return Completion(self.prompt, read, self.text, tokens, chances, ended, self.seed)


def _changed(config: GenerationConfig | None, changes: dict[str, Any]) -> GenerationConfig:
    if not isinstance(config, GenerationConfig | None):
        raise UserError(f"config={config!r}: expected a GenerationConfig, or single settings such as temperature=0.7")
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    if unknown := sorted(set(changes) - set(known)):
        raise UserError(f"{unknown[0]}: no such setting; there are {', '.join(known)}")
    return dataclasses.replace(config or GenerationConfig(), **changes)
