"""A seed -> texts whose ground truth is known: for each character span, which earlier span it refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from minigpt.data.relations import Example, Relation
from minigpt.data.synthetic.stories import Choices, tell_story


def repeats(seed: int, start: int = 0) -> Iterator[Example]:
    """Random characters, then the same again, without end; `start` is the index of the first text.

    Nothing but a look back at the first copy predicts the second: the test of induction heads (Olsson et al. 2022,
    https://arxiv.org/abs/2209.11895). A copy has 8 to 60 characters, letters, digits, + and -, so that two copies and
    an end_of_text fit into 128 tokens of one character.

    Relations:
        copy: the second copy -> the first.
    """
    return _endless(_repeat, "repeats", seed, start)


def references(seed: int, start: int = 0) -> Iterator[Example]:
    """Short stories of people, animals and things, without end; `start` is the index of the first story.

    Each word that refers back does so without doubt. A name has one pronoun in all stories, and so has a noun without a
    name. A pronoun is only used while its referent is the only one mentioned so far that has it, and "they" only while
    no two living beings, and no two things, have been mentioned that together could be meant. Places are definite from
    the first ("the garden"); no pronoun stands for them, but they count as things. Times ("one evening") and idioms
    ("her best") do not. Of two keys each keeps its adjective: "the old key".

    Spans are single words, the heads of what they stand for: "Riley" in "Evan's dog Riley", "key" in "the old key". It
    is what work on coreference in attention looks at (Clark et al. 2019, https://arxiv.org/abs/1906.04341), and here
    always the last word: the first at which a causal model has read the whole phrase.

    Relations, from any mention but the first, to the head of the first:
        pronoun: he, him; she, her; it; they, them.
        possessive: his, her, its, their.
        reflexive: himself, herself, itself, themselves.
        name: a name that was mentioned before.
        noun_phrase: "the old key"; "the dog" for Riley, "the baker" or "his sister" for Nora.
    And from each of these sources once more:
        nearest: the head of the last mention before it, of whatever kind. Chained, these give all mentions.
    """
    return _endless(tell_story, "references", seed, start)


SYNTHETIC_VERSION = 1
"""To be raised with every change of the texts: those that were prepared before are then prepared anew."""

SYNTHETIC: dict[str, Callable[..., Iterator[Example]]] = {"repeats": repeats, "references": references}
"""Sources of texts with relations: (seed, start=0) -> the texts from index `start` on."""


def _endless(make: Callable[[Choices], Example], name: str, seed: int, start: int) -> Iterator[Example]:
    return (make(Choices(f"{name} {seed} {index}")) for index in count(start))


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"


def _repeat(choices: Choices) -> Example:
    length = choices.choose(range(8, 61))
    text = "".join([choices.choose(_ALPHABET) for _ in range(length)])
    return text * 2, [Relation("copy", (length, 2 * length), (0, length))]
