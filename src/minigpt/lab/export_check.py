"""An exported folder, opened by transformers, against the model: logits, token ids and a greedy text."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ExportConfig
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT
from minigpt.runs.loading import LoadedModel

TOLERANCE = 1e-3
"""Largest difference of float32 logits that passes; those of two correct programs differ by 1e-6 to 1e-4."""
N_TOKENS = 200
TEXT = "Hello World's 12345 ?!\r\n\t naïve  東京 🙂 the end\n\n  of\tit."


def check_export(folder: Path, loaded: LoadedModel, config: ExportConfig) -> str:
    """Compare an exported folder, opened by transformers, with the model; return the verdict in a line.

    Raises:
        UserError: transformers is not installed or cannot open the folder, or the two differ.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("check: needs transformers (pip install transformers); the export itself is complete") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    file = next((each.name for each in folder.glob("*.gguf")), None)
    named: dict[str, Any] = {} if file is None else {"gguf_file": file}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of tqdm
            settings: Any = transformers.AutoConfig.from_pretrained(folder, **named)
            if file is not None:  # the sizes that transformers does not take from a GGUF file
                model = loaded.config.model
                settings.head_dim, settings.n_inner = model.width_per_head, model.mlp_width
                settings.n_positions = model.context_length
            named |= {"config": settings, "dtype": torch.float32}
            theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **named).eval()
            # It reads the tokenizer of any GGUF file as GPT-2's, which says nothing about llama.cpp.
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder) if file is None else None
    except Exception as error:  # whatever the other program raises, the user needs its words
        raise UserError(f"check: transformers cannot open {folder} ({str(error).splitlines()[0]:.200})") from None
    prompt = torch.tensor([[loaded.tokenizer.end_of_text]])
    n = min(N_TOKENS, loaded.config.model.context_length - 1)
    ours = _greedy(loaded.model, prompt, n)
    greedy = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n, "pad_token_id": 0}
    other = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, **greedy)
    with torch.inference_mode():
        difference = float((loaded.model(ours) - theirs(ours).logits).abs().max())
    same = int((ours == other)[0].long().cumprod(0).sum()) - 1
    said = (
        f"check by transformers {transformers.__version__}: logits differ by at most {difference:.1e}, {same} of {n} "
        f"greedy tokens are equal"
    )
    ids = True
    if tokenizer is not None:
        text = _text(loaded, ours[0, 1:].tolist())
        begin = [] if loaded.tokenizer.begin_of_text is None else [loaded.tokenizer.begin_of_text]
        ids = tokenizer(text)["input_ids"] == [*begin, *loaded.tokenizer.encode(text)]
        said += f", token ids are {'equal' if ids else 'different'}"
    if config.dtype == "float32" and (difference > TOLERANCE or same < n or not ids):
        raise UserError(f"{said}: {folder} is not the same model")
    return said


def _text(loaded: LoadedModel, tokens: list[int]) -> str:
    """A text that the tokenizer can encode."""
    try:
        loaded.tokenizer.encode(TEXT)
    except UserError:  # an alphabet that lacks some of the characters
        return decode(loaded.tokenizer, [token for token in tokens if token != loaded.tokenizer.end_of_text])
    return TEXT


@torch.inference_mode()
def _greedy(model: GPT, prompt: Tensor, n: int) -> Tensor:
    """(1, 1 + n): the prompt, and one after the other the likeliest next tokens."""
    cache = KVCache(model.config, 1, 1 + n)
    tokens = new = prompt
    for _ in range(n):
        logits = model(new, cache=cache)
        cache.position += new.shape[1]
        new = logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
