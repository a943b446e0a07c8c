"""Texts that splits, merges and normalizers could stumble over."""

import random
import unicodedata

_WORDS = (
    "the house and return first def add it's I'LL we'Ve 'S 'ſ KELVIN 12 123 12345 ² ½ ٣ #!? --- \r\n \r \n\n \0 aaaa "
    "abab <|endoftext|> <| |> </s> <0x0A> <table> <s> é e\u0301 가 ᄀ\u1161 ㄱ 東京 ภาษา עברית नमस्ते 🙂 \u200b "
    "👩\u200d👧 \ufeff \ufffd ſ ß ﬆ K İ ǅ \u0345 ▁ ▁▁ Ġ"
)
_SPACES = [" ", "  ", " " * 4, " " * 9, "\t", "\x1c", "\x85", "\u2028", "\u00a0", "\u3000", " ▁▁"]
PIECES = [*_WORDS.split(" "), *_SPACES, "\ud800"]


def hard_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of up to twelve of these parts, words, and single characters of all of Unicode."""
    chance = random.Random(seed)

    def part() -> str:
        kind = chance.random()
        if kind < 0.75:
            return chance.choice(PIECES)
        if kind < 0.9:
            return chr(chance.choice([*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x300, 0x370)]))
        rare = chr(chance.choice([chance.randrange(0xD800), chance.randrange(0xE000, 0x110000)]))
        return rare if unicodedata.category(rare) != "Cn" else "?"  # a newer Unicode may have made it a letter

    return ["".join(part() for _ in range(chance.randrange(13))) for _ in range(n)]
