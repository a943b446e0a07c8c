"""A seed -> synthetic texts with relations: which span refers to which earlier span."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from minigpt.data.relations import Example, Relation
from minigpt.data.synthetic.stories import Choices, tell_story


def repeats(seed: int, start: int = 0) -> Iterator[Example]:
    """Infinitely many texts of random characters repeated once; `start` is the index of the first text.

    The second copy can only be predicted from the first: the test of induction heads (Olsson et al. 2022,
    https://arxiv.org/abs/2209.11895). A copy has 8 to 60 characters (letters, digits, + and -), so two copies and an
    end_of_text fit into 128 tokens of one character.

    Relations:
        copy: a character of the second copy -> the one after its original, which comes next; at a quarter, half and
            three quarters of the copy.
    """
    return _endless(_repeat, "repeats", seed, start)


def references(seed: int, start: int = 0) -> Iterator[Example]:
    """Infinitely many short stories of people, animals and things; `start` is the index of the first story.

    Every reference is unambiguous. A name has the same pronoun in all stories, and so has a noun without a name. A
    pronoun is only used while a single entity mentioned so far has it, and "they" only while no two living beings, and
    no two things, have been mentioned that it could mean together. Places are definite from the first mention ("the
    garden"); they have no pronoun, but count as things. Times ("one evening") and idioms ("her best") are no entities.
    Of two keys, each keeps its adjective: "the old key".

    Spans are single words, the syntactic heads of their phrases: "Riley" in "Evan's dog Riley", "key" in "the old key".
    Work on coreference in attention uses heads too (Clark et al. 2019, https://arxiv.org/abs/1906.04341). Here the head
    is always the last word, where a causal model has read the whole phrase.

    Relations, from every mention but the first, to the head of the first:
        pronoun: he, him; she, her; it; they, them.
        possessive: his, her, its, their.
        reflexive: himself, herself, itself, themselves.
        name: a name that was mentioned before.
        noun_phrase: "the old key"; "the dog" for Riley, "the baker" or "his sister" for Nora.
    And a second relation from each of these sources:
        nearest: the head of the previous mention, of whatever kind. Chained, these give all mentions.
    """
    return _endless(tell_story, "references", seed, start)


SYNTHETIC_VERSION = 2
"""Raise with every change of the texts, so that they are prepared again."""

SYNTHETIC: dict[str, Callable[..., Iterator[Example]]] = {"repeats": repeats, "references": references}
"""Sources of texts with relations: (seed, start=0) -> the texts from index `start` on."""


def _endless(make: Callable[[Choices], Example], name: str, seed: int, start: int) -> Iterator[Example]:
    return (make(Choices(f"{name} {seed} {index}")) for index in count(start))


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"


def _repeat(choices: Choices) -> Example:
    length = choices.choose(range(8, 61))
    text = "".join([choices.choose(_ALPHABET) for _ in range(length)])
    # From a character to the one after its original, as induction heads attend; three are enough to measure them, and
    # one for each character would make the file of relations many times as long as the text.
    places = [length * quarter // 4 for quarter in (1, 2, 3)]
    return text * 2, [Relation("copy", (length + i, length + i + 1), (i + 1, i + 2)) for i in places]
