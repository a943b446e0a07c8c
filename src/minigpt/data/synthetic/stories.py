"""Short stories in which every reference is unambiguous, with its ground truth."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple, TypeVar

from minigpt.data.relations import Example, Relation, Span

_T = TypeVar("_T")

WORDS = tomllib.loads((files(__package__) / "stories.toml").read_text(encoding="utf-8"))
PEOPLE, ANIMAL_NAMES, KIN, NOUNS, LOOKS = (
    {key: words.split() for key, words in WORDS[table].items()}
    for table in ("people", "animal_names", "kin", "nouns", "looks")
)


class Choices:
    """Reproducible choices: only seeding with a string and `random()` give equal results in all Python versions.

    https://docs.python.org/3/library/random.html#notes-on-reproducibility
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random

    def choose(self, items: Sequence[_T]) -> _T:
        return items[int(self.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self.random() < probability


class _Verb(NamedTuple):
    forms: Sequence[str]
    """Singular and plural in the present, then in the past."""


class _Slot(NamedTuple):
    """A mention of a role, in the form that "he" would have there; without a form, a phrase of that kind."""

    role: str
    form: str


_Line = tuple[str | _Verb | _Slot, ...]


def _inflect(verb: str) -> _Verb:
    if verb in WORDS["verbs"]:
        return _Verb(tuple(WORDS["verbs"][verb]))
    y_after_consonant = verb[-1] == "y" and verb[-2] not in "aeiou"
    stem = verb[:-1] + "i" if y_after_consonant else verb
    singular = stem + ("es" if y_after_consonant or verb.endswith(("ch", "o", "s", "sh", "x")) else "s")
    past = WORDS["past"].get(verb, stem + ("d" if verb.endswith("e") else "ed"))
    return _Verb((singular, verb, past, past))


def _parse_lines(text: str) -> list[_Line]:
    """Lines of a plot; "-" gives the empty line, which tells nothing."""
    return [() if line == "-" else _parse_line(line) for line in text.splitlines()]


def _parse_line(line: str) -> _Line:
    parts: list[str | _Verb | _Slot] = []
    for text, role, form, phrase, verb in re.findall(r"([^{<]+)|\{([A-Z])(?:\.(\w+))?\}|\{([a-z]+)\}|<(\w+)>", line):
        parts.append(text or (_inflect(verb) if verb else _Slot(role, form or "he") if role else _Slot(phrase, "")))
    return tuple(parts)


_PLOTS = [(plot["owners"], [_parse_lines(stage) for stage in plot["stages"].split("\n\n")]) for plot in WORDS["plots"]]
"""For each plot: which role belongs to which, and its stages, each a list of alternative lines."""
_ASIDES = {kind: _parse_lines(text) for kind, text in WORDS["asides"].items()}


@dataclass(eq=False, slots=True)
class _Entity:
    """A person, animal, thing or place of a story."""

    kind: str
    """person, animal, thing or place."""
    pronoun: str
    noun: str = ""
    look: str = ""
    name: str = ""
    owner: _Entity | None = None
    plural: bool = False
    """Whether the noun is plural."""
    kin: bool = False
    """Whether the noun needs its owner: "her sister", not "the sister"."""


class _Cast(dict[str, _Entity]):
    """Role -> entity, created on first access. No two share a name, or both noun and look."""

    def __init__(self, choices: Choices, owners: dict[str, str]) -> None:
        self.choices, self.owners = choices, owners

    def __missing__(self, role: str) -> _Entity:
        invent = {"A": self.lead, "B": self.companion, "D": self.animal, "L": self.place, "M": self.place}
        entity = self[role] = invent.get(role, self.thing)()
        if role in self.owners:
            entity.owner = self[self.owners[role]]
        return entity

    def fresh(self, words: Sequence[str]) -> str:
        """A word that is not yet a name or noun of this cast."""
        while True:
            word = self.choices.choose(words)
            if all(word not in (other.name, other.noun) for other in self.values()):
                return word

    def person(self, pronouns: Sequence[str] = ("he", "he", "she", "she", "they")) -> _Entity:
        pronoun = self.choices.choose(pronouns)
        return _Entity("person", pronoun, name=self.fresh(PEOPLE[pronoun]))

    def lead(self) -> _Entity:
        lead = self.person()
        if self.choices.chance(0.25):
            lead.noun = self.choices.choose(NOUNS["trade"])
        return lead

    def companion(self) -> _Entity:
        others = [pronoun for pronoun in ("he", "she", "they") if pronoun != self["A"].pronoun]
        companion = self.person(others) if self.choices.chance(0.5) else self.person()
        if self.choices.chance(0.5):
            companion.owner, companion.kin = self["A"], True
            companion.noun = self.choices.choose(KIN[companion.pronoun])
            if sum(companion.noun in nouns for nouns in KIN.values()) == 1 and self.choices.chance(0.3):
                companion.name = ""
        return companion

    def animal(self) -> _Entity:
        animal = _Entity("animal", "it", self.choices.choose(NOUNS["animal"]))
        if self.choices.chance(0.7):
            animal.pronoun = self.choices.choose(("he", "he", "she", "she", "it"))
            animal.name = self.fresh(ANIMAL_NAMES[animal.pronoun])
        if self.choices.chance(0.4):
            animal.look = self.choices.choose(LOOKS["animal"])
        return animal

    def thing(self) -> _Entity:
        other = next((thing for thing in self.values() if thing.kind == "thing" and thing.look), None)
        if other and self.choices.chance(0.25):
            look = self.choices.choose([look for look in LOOKS["thing"] if look != other.look])
            return _Entity("thing", other.pronoun, other.noun, look, plural=other.plural)
        plural = self.choices.chance(0.2)
        noun = self.fresh(NOUNS["things" if plural else "thing"])
        look = self.choices.choose(LOOKS["thing"]) if self.choices.chance(0.6) else ""
        return _Entity("thing", "they" if plural else "it", noun, look, plural=plural)

    def place(self) -> _Entity:
        return _Entity("place", "it", self.fresh(NOUNS["place"]))


class _Story:
    """A story under construction: its text, its mentions, and the entities mentioned so far."""

    def __init__(self, choices: Choices, cast: _Cast) -> None:
        self.choices, self.cast = choices, cast
        self.past = choices.chance(0.65)
        self.text = ""
        self.mentions: list[tuple[_Entity, str, Span]] = []
        """(entity, relation, span); the relation is empty for a first mention."""
        self.seen: dict[_Entity, int] = {}
        """Entity mentioned so far -> the sentence of its last mention."""
        self.n_sentences = 0
        self.plural = False
        self.told: set[_Line] = set()

    def tell_all(self, stages: list[list[_Line]]) -> bool:
        """Add one line of each stage, with asides in between; False if no line of a stage is possible."""
        for i, lines in enumerate(stages):
            first = self.choices.choose(range(len(lines)))
            if not any(self.tell(line) for line in lines[first:] + lines[:first]):
                return False
            if i + 1 < len(stages) and self.n_sentences + len(stages) - i <= 8 and self.choices.chance(0.3):
                self.cast["X"] = self.choices.choose([entity for entity in self.seen if entity.kind != "place"])
                self.tell(self.choices.choose(_ASIDES[self.cast["X"].kind]))
        return True

    def tell(self, line: _Line) -> bool:
        """Add a sentence; if it is a repetition or would be ambiguous, add nothing and return False."""
        if not line:
            return True
        if line in self.told:
            return False
        text, n_mentions, seen = self.text, len(self.mentions), self.seen.copy()
        self.text += " " if text else ""
        start = len(self.text)
        for part in line:
            if isinstance(part, str):
                self.text += part
            elif isinstance(part, _Verb):
                self.text += part.forms[2 * self.past + self.plural]
            elif not part.form:
                phrases = WORDS["phrases"][part.role]
                self.text += self.choices.choose([p for p in phrases if p[1:] not in self.text] or phrases)
            elif not self.refer(self.cast[part.role], part.form):
                self.text, self.seen = text, seen
                del self.mentions[n_mentions:]
                return False
        self.text = self.text[:start] + self.text[start].upper() + self.text[start + 1 :]
        self.told.add(line)
        self.n_sentences += 1
        return True

    def refer(self, entity: _Entity, form: str) -> bool:
        """Mention an entity; where good English needs a pronoun that is ambiguous, add nothing and return False."""
        last = self.seen.get(entity)
        again = last == self.n_sentences
        likely = 0.75 if last == self.n_sentences - 1 else 0.4
        pronoun = last is not None and (again or self.choices.chance(likely)) and self.is_clear(entity)
        if pronoun:
            self.mention(entity, WORDS["relations"][form], WORDS["pronouns"][entity.pronoun][form])
        elif again or not (self.introduce(entity, form) if last is None else self.name(entity)):
            return False
        elif form == "his":
            self.text += "'s"
        if form == "he":
            self.plural = entity.pronoun == "they" if pronoun else entity.plural
        return True

    def is_clear(self, entity: _Entity) -> bool:
        """Whether the entity's pronoun can refer to no other mentioned entity."""
        if entity.kind == "place" or [other.pronoun for other in self.seen].count(entity.pronoun) > 1:
            return False
        if entity.pronoun != "they":
            return True
        n_living = sum(other.kind in ("person", "animal") for other in self.seen)
        return n_living <= 1 and len(self.seen) - n_living <= 1

    def introduce(self, entity: _Entity, form: str) -> bool:
        """The first mention: "Evan", "a baker named Evan", "Evan's dog Riley", "an old key", "the garden"."""
        if entity.noun:
            if form == "his":
                return False  # "a baker named Evan's"
            phrase = f"{entity.look} {entity.noun}" if entity.look else entity.noun
            if entity.owner and self.refer(entity.owner, "his"):
                before, between = " ", " "
            elif entity.kin:
                return False
            else:
                an = "some" if entity.plural else "an" if phrase[0] in "aeiou" else "a"
                before, between = "the " if entity.kind == "place" else f"{an} ", " named "
            self.text += before + (phrase + between if entity.name else phrase.removesuffix(entity.noun))
        self.mention(entity, "", entity.name or entity.noun)
        return True

    def name(self, entity: _Entity) -> bool:
        """A later mention by name, or by noun: "the old key", "his sister"."""
        if entity.name and (not entity.noun or self.choices.chance(0.6)):
            self.mention(entity, "name", entity.name)
            return True
        if not entity.kin:
            shared = any(other.noun == entity.noun and other is not entity for other in self.seen)
            look = entity.look and (shared or self.choices.chance(0.2))
            self.text += f"the {entity.look} " if look else "the "
        elif entity.owner and self.refer(entity.owner, "his"):
            self.text += " "
        elif entity.name:
            self.mention(entity, "name", entity.name)
            return True
        else:
            return False
        self.mention(entity, "noun_phrase", entity.noun)
        return True

    def mention(self, entity: _Entity, relation: str, word: str) -> None:
        self.mentions.append((entity, relation, (len(self.text), len(self.text) + len(word))))
        self.text += word
        self.seen[entity] = self.n_sentences

    def relations(self) -> list[Relation]:
        first: dict[_Entity, Span] = {}
        last: dict[_Entity, Span] = {}
        relations = []
        for entity, name, span in self.mentions:
            if entity in first:
                relations += [Relation(name, span, first[entity]), Relation("nearest", span, last[entity])]
            else:
                first[entity] = span
            last[entity] = span
        return relations


def tell_story(choices: Choices) -> Example:
    """One story and its relations."""
    while True:  # with some casts every line of a stage is ambiguous: draw again
        owners, stages = choices.choose(_PLOTS)
        story = _Story(choices, _Cast(choices, owners))
        if story.tell_all(stages):
            return story.text, story.relations()
