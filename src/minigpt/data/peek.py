"""Summary of prepared data for the terminal: sizes, most frequent tokens, and the first batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minigpt.config import Config
from minigpt.data.batches import IGNORED, TrainBatches, train_batches
from minigpt.data.shards import PreparedData, Split
from minigpt.data.tokenizers.base import Tokenizer

MOST_FREQUENT = 12
"""Tokens listed."""
ROWS = 2
"""Rows of the first batch shown."""
COUNTED_TOKENS = 100_000_000
"""Tokens of train, from its start, counted to find the most frequent."""
END, PADDING, NOTHING, SPACE = "⟨end of text⟩", "⟨padding⟩", "–", "·"


def peek(data: PreparedData, config: Config) -> str:
    """Describe prepared data and the first batch of a run with this config.

    Raises:
        UserError: the text is shorter than one window of model.context_length.
    """
    manifest = data.manifest
    lines = [
        f"folder     {data.folder}",
        f"source     {', '.join(manifest.source)}, fingerprint {manifest.text_fingerprint[:12]}",
        f"tokenizer  {manifest.tokenizer}: {manifest.vocab_size:,} tokens, stored as {manifest.token_type}",
        *_split_lines("train", data.train),
        *_split_lines("val", data.val),
    ]
    if manifest.duplicates_left_out:
        lines.append(f"           {manifest.duplicates_left_out} documents of val are left out, as train has them too")
    if manifest.skipped_files:
        skipped = manifest.skipped_files
        lines.append(f"skipped    {len(skipped)} files that are not text in data.encoding, such as {skipped[0]}")
    n_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    batches = train_batches(config, data, n_batches=n_batches)
    lines += ["", *_shares(batches, config), "", *_frequent(data), "", *_batch(batches, data.tokenizer)]
    return "\n".join(lines)


def _shares(batches: TrainBatches, config: Config) -> Iterator[str]:
    """Each source's share of the run, and its epochs."""
    n_items = batches.n_batches * batches.batch_size
    yield f"a run of {n_items:,} {'windows' if config.data.mode == 'packed' else 'examples'} takes"
    for share in batches.shares(n_items):
        yield f"  {100 * share.share:5.1f} % from {share.name}, read through {share.epochs:.2f} times"


def _split_lines(name: str, split: Split) -> Iterator[str]:
    n_tokens, starts = len(split.tokens), split.document_starts
    lengths = np.diff(starts, append=n_tokens) - 1  # without the end_of_text
    yield f"{name:<9}  {split}, {split.n_bytes / max(1, n_tokens - len(starts)):.2f} bytes per token"
    if len(starts) == 1:
        yield f"           one document of {lengths[0]:,} tokens"
    else:
        median = int(np.median(lengths))
        yield f"           documents have {lengths.min():,} to {lengths.max():,} tokens, {median:,} in the median"
    if split.answers is not None:
        share = split.n_target_bytes / max(1, split.n_bytes)
        yield f"           loss on {len(split.answers):,} answers alone, {100 * share:.1f} % of the text"
    if len(split.sources) > 1:
        for source in split.sources:
            yield (
                f"           {100 * source.n_tokens / n_tokens:5.1f} % {source.name}: "
                f"{source.n_documents:,} documents, {source.n_bytes / 1e6:.2f} MB, {source.n_tokens:,} tokens"
            )


def _frequent(data: PreparedData) -> Iterator[str]:
    counted = min(len(data.train.tokens), COUNTED_TOKENS)
    counts = np.zeros(data.manifest.vocab_size, dtype=np.int64)
    for start in range(0, counted, 1 << 22):
        chunk = data.train.tokens.read(start, min(start + (1 << 22), counted))
        counts += np.bincount(chunk, minlength=len(counts))
    yield f"the most frequent of {int((counts > 0).sum()):,} tokens that occur"
    for token in np.argsort(-counts, kind="stable")[:MOST_FREQUENT]:
        if counts[token]:
            shown = _shown(data.tokenizer, int(token))
            yield f"  {100 * counts[token] / counted:5.2f} %  {shown}"


def _batch(batches: TrainBatches, tokenizer: Tokenizer) -> Iterator[str]:
    tokens, targets = (part.tolist() for part in batches[0])
    yield f"the first batch has {len(tokens)} rows of {len(tokens[0])} tokens; {min(ROWS, len(tokens))} of them"
    for row, row_targets in zip(tokens[:ROWS], targets, strict=False):
        n = max((i + 1 for i, y in enumerate(row_targets) if y != IGNORED), default=0)  # what follows is padding
        reads = [_shown(tokenizer, x) if i < n else PADDING for i, x in enumerate(row)]
        predicts = [NOTHING if y == IGNORED else _shown(tokenizer, y) for y in row_targets]
        yield f"  reads     {'|'.join(reads)}"
        yield f"  predicts  {'|'.join(predicts)}"


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text on one line, line ends and control characters escaped."""
    if token == tokenizer.end_of_text:
        return END
    text = tokenizer.decode_bytes([token]).decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace(" ", SPACE)
