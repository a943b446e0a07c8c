"""Detection of encodings, for errors about files that are not text in data.encoding."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from minigpt.data.sources.formats import decoded

HEAD = 1 << 16
"""Bytes at the start of a file used for detection."""
_SNIPPET = 40
"""Decoded characters shown, so that the user can judge the guess."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "le"),  # before UTF-16, whose mark is its first half
    (codecs.BOM_UTF32_BE, "utf-32", "be"),
    (codecs.BOM_UTF16_LE, "utf-16", "le"),
    (codecs.BOM_UTF16_BE, "utf-16", "be"),
    (codecs.BOM_UTF8, "utf-8", "sig"),
)
_COMMON = (
    *("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "iso8859_2"),
    *("iso8859_15", "shift_jis", "cp932", "euc_jp", "gb18030", "big5", "cp949", "mac_roman", "cp437", "cp850"),
    *("cp866", "tis_620", "utf_16_le", "utf_16_be"),
)
"""Encodings to guess from, the most common first: it wins ties."""


def other_unicode(head: bytes, encoding: str) -> str | None:
    """What to do with a file in another Unicode encoding than the given one; None if nothing indicates that.

    Without a byte-order mark, UTF-16 and UTF-32 are recognised by zero bytes: most such files are valid UTF-8 or cp1252
    too, so decoding alone does not tell.

    Args:
        head: its first bytes, decompressed.
        encoding: the one to read it with.
    """
    wanted = codecs.lookup(encoding).name
    for mark, name, order in _MARKS:
        if head.startswith(mark):
            fits = wanted in {name, f"{name}-{order}"}
            return None if fits else f"is {name.upper()} by its byte-order mark: give --data.encoding {name}"
    if found := _without_mark(head):
        if wanted == found:
            return None
        return f"looks like {found.upper()} without a byte-order mark: give --data.encoding {found}"
    if wanted in {"utf-16", "utf-32"} and head:
        return f"has no byte-order mark, which {wanted} needs: give another data.encoding, such as utf-8 or {wanted}-le"
    return None


def is_wide(head: bytes) -> bool:
    """Whether bytes are UTF-16 or UTF-32, in which zero bytes do not indicate a binary file."""
    return any(head.startswith(mark) for mark, name, _ in _MARKS if name != "utf-8") or _without_mark(head) is not None


def _without_mark(head: bytes) -> str | None:
    for name in ("utf-32-le", "utf-32-be"):
        text = decoded(head[: len(head) // 4 * 4], name)
        if text and text.count("\0") < len(text) / 2:
            return name
    # In alphabetic scripts the high byte of a UTF-16 unit is below 16, and zero for spaces; the low byte is arbitrary.
    whole = head[: len(head) // 2 * 2]
    for upper, lower, name in ((whole[1::2], whole[::2], "utf-16-le"), (whole[::2], whole[1::2], "utf-16-be")):
        is_upper = 0 in upper and _share_below(16, upper) > 0.8 and _share_below(9, lower) < 0.5
        if is_upper and decoded(whole, name):
            return name
    return None


def _share_below(limit: int, content: bytes) -> float:
    return sum(map(content.count, range(limit))) / max(1, len(content))


def likely_encoding(sample: bytes, place: int, encoding: str) -> str:
    """What to do with text that does not decode: the likely encoding, with a few decoded words.

    Args:
        sample: bytes of the file.
        place: offset in the sample of the first wrong byte.
        encoding: the one that failed.
    """
    text = sample.decode("utf-8", "replace").rstrip("\ufffd")  # the sample may end within a character
    n_wrong = text.count("\ufffd")
    n_right = sum(character > "\x7f" for character in text) - n_wrong
    if n_right > 2 * n_wrong:
        if codecs.lookup(encoding).name == "utf-8":
            return "it is UTF-8 but for a few bytes: set data.encoding_errors to replace or skip"
        likely: str | None = "utf-8"
    else:
        likely = _likely(sample)
    if likely is None:
        return "give its encoding as data.encoding, such as cp1252, or set data.encoding_errors to replace or skip"
    before = sample[:place].decode(likely, "replace")[-_SNIPPET // 2 :]
    after = sample[place : place + 8 * _SNIPPET].decode(likely, "replace")[: _SNIPPET // 2]
    shown = " ".join((before + after).split())
    return (
        f"it is likely {likely}, in which it reads {shown!r}: give --data.encoding {likely}, or another encoding, or "
        "set data.encoding_errors to replace or skip"
    )


def _likely(sample: bytes) -> str | None:
    import charset_normalizer  # only needed for an error

    lines = sample.split(b"\n")
    if len(lines) > 2:
        lines = lines[1:-1]  # the first and last may be cut inside a character
    # ASCII lines fit every encoding, and many of them drown the evidence.
    telling = b"\n".join(line for line in lines if not line.isascii()) or sample
    found = list(charset_normalizer.from_bytes(telling, cp_isolation=list(_COMMON)))
    if not found:
        return None
    best = found[0]
    good = {best.encoding, *best.could_be_from_charset}
    # charset_normalizer may rank cp1250 and others above an equally good cp1252, which is far more common.
    for match in found:
        if match.chaos <= best.chaos + 0.01 and match.coherence >= best.coherence - 0.1:
            good |= {"cp1252"} & {match.encoding, *match.could_be_from_charset}
    return next((name for name in _COMMON if name in good), best.encoding)


class TextDecoder:
    """Decodes a file chunk by chunk, and records where the first wrong byte is."""

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        """Args: encoding, a Python codec; errors, `strict` or `replace`."""
        self.encoding = encoding
        self.bad_byte: int | None = None
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._n_bytes = 0

    def decode(self, chunk: bytes, final: bool = False) -> str:
        """Decode the next chunk.

        Raises:
            UnicodeError: it is not in the encoding; `bad_byte` is the offset in the file.
        """
        state = self._decoder.getstate()
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeError as error:
            self.bad_byte = self._n_bytes - len(state[0]) + getattr(error, "start", 0)
            self._decoder.setstate(state)
            raise
        self._n_bytes += len(chunk)
        return text

    def lenient(self) -> Iterator[codecs.IncrementalDecoder]:
        """Two decoders that continue from here: one replaces wrong bytes by U+FFFD, the other drops them."""
        for errors in ("replace", "ignore"):
            decoder = codecs.getincrementaldecoder(self.encoding)(errors)
            decoder.setstate(self._decoder.getstate())
            yield decoder
