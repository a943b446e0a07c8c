"""Synthetic texts: right English, one possible referent for every pronoun, and spans that say which."""

import functools
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.relations import Relation, Span, read_relations, to_json_line
from minigpt.data.synthetic import stories
from minigpt.data.synthetic.texts import SYNTHETIC, references, repeats
from minigpt.errors import UserError

REPEAT_0 = "lU8yUcFNlib+6-cZbbwvlEgScLZZEyZCx-HejE+kJRJ7sLVCz0qMTKUQ"
STORY_1 = (
    "Before breakfast, Samir looked at his strange flute and smiled. He dropped it, but it did not break. The "
    "strange flute was as good as new. Two days later, Samir walked to the attic with the strange flute. He was "
    "poor, but he did not want to sell the flute. He went to bed and dreamed of the strange flute."
)

PRONOUNS = {
    word: (pronoun, relation)
    for pronoun, words in {
        "he": "he:pronoun him:pronoun his:possessive himself:reflexive",
        "she": "she:pronoun her:pronoun|possessive herself:reflexive",
        "it": "it:pronoun its:possessive itself:reflexive",
        "they": "they:pronoun them:pronoun their:possessive themselves:reflexive",
    }.items()
    for word, relation in (pair.split(":") for pair in words.split())
}
NAMES = {
    name: ("living", pronoun)
    for names in (stories.PEOPLE, stories.ANIMAL_NAMES)
    for pronoun, words in names.items()
    for name in words
}
NOUNS = {
    **{noun: ("living", pronoun) for pronoun, nouns in stories.KIN.items() for noun in nouns},
    **dict.fromkeys(stories.NOUNS["animal"], ("living", "it")),
    **dict.fromkeys(stories.NOUNS["thing"] + stories.NOUNS["place"], ("thing", "it")),
    **dict.fromkeys(stories.NOUNS["things"], ("thing", "they")),
    **dict.fromkeys(stories.NOUNS["trade"], ("living", "by name")),
}


@functools.cache
def many_stories() -> list[tuple[str, list[Relation]]]:
    return list(itertools.islice(references(1), 5000))


def words_of(text: str) -> list[tuple[str, Span]]:
    return [(match.group(), match.span()) for match in re.finditer(r"[^\W\d_]+", text)]


def references_of(relations: list[Relation]) -> dict[Span, tuple[str, Span]]:
    """source -> (name, target), without the `nearest` relations."""
    return {relation.source: (relation.name, relation.target) for relation in relations if relation.name != "nearest"}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_text_depends_on_seed_and_index_alone_so_that_one_can_start_anywhere(name: str) -> None:
    make = SYNTHETIC[name]
    first = list(itertools.islice(make(3), 20))
    assert list(itertools.islice(make(3), 20)) == first
    assert list(itertools.islice(make(3, start=13), 7)) == first[13:]
    assert next(make(4)) != first[0]


def test_texts_are_the_same_on_every_platform_and_python() -> None:
    assert next(repeats(0))[0] == 2 * REPEAT_0
    assert next(references(1))[0] == STORY_1


@pytest.mark.parametrize("name", SYNTHETIC)
def test_spans_lie_in_the_text_and_the_source_follows_the_target(name: str) -> None:
    for text, relations in itertools.islice(SYNTHETIC[name](5), 500):
        assert relations
        for relation in relations:
            assert 0 <= relation.target[0] < relation.target[1] <= relation.source[0] < relation.source[1] <= len(text)


def test_the_second_copy_repeats_the_first_and_fits_a_context_of_128_characters() -> None:
    texts = list(itertools.islice(repeats(0), 3000))
    for text, relations in texts:
        length = len(text) // 2
        assert text[:length] == text[length:]
        for relation in relations:
            assert relation.name == "copy"
            assert relation.target[0] == relation.source[0] - length + 1, "as an induction head attends"
            assert relation.target[1] <= length
        assert len({relation.source for relation in relations}) == 3
    assert {len(text) // 2 for text, _ in texts} == set(range(8, 61))
    assert len(set("".join(text for text, _ in texts))) == 64
    assert len({text for text, _ in texts}) == len(texts)


def test_stories_differ_and_are_three_to_eight_sentences() -> None:
    assert len({text for text, _ in many_stories()}) > 0.999 * len(many_stories())
    assert {len(re.findall(r"\.(?: |$)", text)) for text, _ in many_stories()} <= set(range(3, 9))
    lengths = sorted(len(text) for text, _ in many_stories())
    assert 150 < lengths[len(lengths) // 100]
    assert lengths[-1] < 550


def test_every_pronoun_is_the_source_of_one_relation_of_its_kind() -> None:
    counts: Counter[str] = Counter()
    for text, relations in many_stories():
        meant = references_of(relations)
        for word, span in words_of(text):
            if word.lower() in PRONOUNS:
                assert meant[span][0] in PRONOUNS[word.lower()][1].split("|"), text
                counts[word.lower()] += 1
        for (start, stop), (name, _) in meant.items():
            assert (text[start:stop].lower() in PRONOUNS) == (name in ("pronoun", "possessive", "reflexive"))
    assert set(counts) == set(PRONOUNS)
    assert min(counts.values()) > 10


def test_her_is_possessive_before_what_can_be_owned_and_a_pronoun_elsewhere() -> None:
    owned = {*NOUNS, "best", "breath", "mind", "time", "way"}
    looks = {look for words in stories.LOOKS.values() for look in words}
    for text, relations in many_stories():
        for (start, stop), (name, _) in references_of(relations).items():
            if text[start:stop] == "her":
                following = re.match(r" (\w+) ?(\w*)", text[stop:])
                words = following.groups() if following else ("", "")
                assert (name == "possessive") == (words[0] in owned or (words[0] in looks and words[1] in owned)), text


def test_every_mention_is_known_and_every_pronoun_has_one_possible_referent() -> None:
    """Reads the stories anew with nothing but the word lists: what is a mention, and what could a pronoun mean?"""
    for text, relations in many_stories():
        meant = references_of(relations)
        nearest = {relation.source: relation.target for relation in relations if relation.name == "nearest"}
        entities: dict[Span, tuple[str, str, str, str]] = {}
        """First mention -> the word, living or thing, its pronoun, and the word before, which may be an adjective."""
        last: dict[Span, Span] = {}
        before = ""
        for word, span in words_of(text):
            follower = re.match(r" (?:named )?(\w+)", text[span[1] :])
            is_noun = word in NOUNS and not (follower and follower[1] in NAMES)  # the name is the head: "dog Riley"
            if word in NAMES or is_noun or word.lower() in PRONOUNS:
                if span not in meant:
                    assert all(word != entity[0] for entity in entities.values()) or before not in ("the", "The"), text
                    assert before.lower() != "the" or word in stories.NOUNS["place"], text
                    assert word not in [entity[0] for entity in entities.values() if word in NAMES], text
                    entities[span] = (word, *(NAMES | NOUNS)[word], before)
                    assert entities[span][2] in ("he", "she", "it", "they"), text
                else:
                    target = meant[span][1]
                    first, _, _, look = entities[target]
                    if word.lower() in PRONOUNS:
                        pronoun = PRONOUNS[word.lower()][0]
                        assert [span for span, entity in entities.items() if entity[2] == pronoun] == [target], text
                        if pronoun == "they":
                            kinds = [kind for _, kind, *_ in entities.values()]
                            assert max(kinds.count(kind) for kind in kinds) == 1, text
                    elif word in NAMES:
                        assert (meant[span][0], first) == ("name", word), text
                    else:
                        assert meant[span][0] == "noun_phrase"
                        assert first in (word, *NAMES), text
                        if [entity[0] for entity in entities.values()].count(word) > 1:
                            assert before == look, text
                    assert nearest.pop(span) == last[target], text
                last[meant[span][1] if span in meant else span] = span
            else:
                assert span not in meant, text
            before = word
        assert not nearest


def test_no_name_is_two_things_or_another_word_and_none_ends_in_s() -> None:
    lists = [*stories.PEOPLE.values(), *stories.ANIMAL_NAMES.values()]
    names = [name for words in lists for name in words]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.endswith("s")]
    nouns = [noun for words in stories.NOUNS.values() for noun in words] + sorted(
        {noun for words in stories.KIN.values() for noun in words}
    )
    assert len(set(nouns)) == len(nouns)
    looks = {look for words in stories.LOOKS.values() for look in words}
    assert not looks & {*nouns, *names}


@pytest.mark.parametrize(
    "mistake",
    [
        r"\b(?i:he|she|it) (?:never |often )?(?:are|were|have|do|stop|forget|leave|like|look|give)\b",
        r"\b(?i:they) (?:never |often )?(?:is|was|has|does|\w+s)\b",
        r"\b(?i:a) [aeiou]",
        r"\b(?i:an) (?!hour)[^aeiou]",
        r"(?:^|\. )[^A-ZØ]",
        r"[^.]$",
        r"[^\w '.,]| [ .,]|[.,]\w|\. ?\.|'s's|'(?!s )",
        r"\b(?i:(\w+) \1)\b",
        r"\b(?i:his|its|their|the|an?|some) (?i:his|her|its|their|the|an?|some|he|she|they|it|him|them)\b",
        r"\b(?:goed|maked|finded|thinked|taked|gived|stoped|huged|runned|selled|gos|dos|trys|tryed)\b",
    ],
)
def test_no_story_makes_this_mistake(mistake: str) -> None:
    for text, _ in many_stories():
        found = re.search(mistake, text)
        assert not found, f"{found.group()!r} in {text}"


def test_plural_things_and_singular_they_take_plural_verbs_and_names_singular_ones() -> None:
    plural = "|".join(stories.NOUNS["things"])
    singular = "|".join(NAMES)
    wrong = re.compile(
        rf"(?:^|[.,] |because |that )(?:(?:The|the)(?: \w+)? (?:{plural}) (?:is|was|has|looks|means|smells)"
        rf"|(?:{singular}) (?:are|were|have|do|look|want))\b"
    )
    for text, _ in many_stories():
        assert not wrong.search(text), text


def test_verbs_take_their_forms() -> None:
    forms = {line: stories._inflect(line).forms for line in ("try", "play", "go", "catch", "fix", "hug", "be", "lose")}
    assert forms["try"] == ("tries", "try", "tried", "tried")
    assert forms["play"] == ("plays", "play", "played", "played")
    assert forms["go"] == ("goes", "go", "went", "went")
    assert forms["catch"] == ("catches", "catch", "caught", "caught")
    assert forms["fix"] == ("fixes", "fix", "fixed", "fixed")
    assert forms["hug"] == ("hugs", "hug", "hugged", "hugged")
    assert forms["be"] == ("is", "are", "was", "were")
    assert forms["lose"] == ("loses", "lose", "lost", "lost")


@pytest.mark.parametrize("name", SYNTHETIC)
def test_texts_come_back_from_json_lines(name: str, tmp_path: Path) -> None:
    examples = list(itertools.islice(SYNTHETIC[name](0), 50))
    path = tmp_path / "texts.jsonl"
    path.write_text("\n\n".join(to_json_line(*example) for example in examples))
    assert list(read_relations(path)) == examples


@settings(deadline=None)  # a busy machine
@given(st.text(min_size=2))
def test_any_text_is_one_ascii_line_of_json_and_spans_count_characters(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    relations = [Relation("größer\n", (1, len(text)), (0, 1))]
    line = to_json_line(text, relations)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(line + "\n")
    assert list(read_relations(path)) == [(text, relations)]


def test_the_json_form_is_the_documented_one_and_may_hold_plain_utf8(tmp_path: Path) -> None:
    relation = {"name": "pronoun", "source": [4, 7], "target": [0, 3]}
    text = "Zoë she"
    assert json.loads(to_json_line(text, [Relation("pronoun", (4, 7), (0, 3))])) == {
        "text": text,
        "relations": [relation],
    }
    path = tmp_path / "utf8.jsonl"
    path.write_bytes(("\ufeff" + json.dumps({"text": text, "relations": [relation]}, ensure_ascii=False)).encode())
    assert list(read_relations(path)) == [(text, [Relation("pronoun", (4, 7), (0, 3))])]


def relation_line(**changes: object) -> bytes:
    relation = {"name": "pronoun", "source": [4, 7], "target": [0, 3], **changes}
    return json.dumps({"text": "Zoë she", "relations": [{k: v for k, v in relation.items() if v is not None}]}).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"[" * 100_000, "recursion"),
        (b'{"text": "\xff", "relations": []}', "not UTF-8 text at byte 10"),
        (b"[]", 'needs "text", a string'),
        (b'{"relations": []}', 'needs "text", a string'),
        (b'{"text": 3, "relations": []}', 'needs "text", a string'),
        (b'{"text": "a"}', 'needs "relations", a list'),
        (b'{"text": "a", "relations": [3]}', 'needs "name", a string'),
        (relation_line(name=None), 'needs "name", a string'),
        (relation_line(source=None), 'needs "source", a list'),
        (relation_line(target=None), 'needs "target", a list'),
        (relation_line(source=4), 'needs "source", a list'),
        (relation_line(source=[4]), "source [4] must be two whole numbers, [start, stop]"),
        (relation_line(target=[0, 3.0]), "target [0, 3.0] must be two whole numbers, [start, stop]"),
        (relation_line(target=[False, 3]), "target [false, 3] must be two whole numbers, [start, stop]"),
        (relation_line(source=[4, 8]), "source [4, 8] must be [start, stop] with 0 <= start < stop <= 7"),
        (relation_line(target=[-1, 3]), "target [-1, 3] must be [start, stop] with 0 <= start < stop <= 7"),
        (relation_line(target=[3, 3]), "target [3, 3] must be [start, stop] with 0 <= start < stop <= 7"),
        (relation_line(target=[0, 5]), "target [0, 5] must end before source [4, 7] begins"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_line(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(relation_line() + b"\n\n" + line + b"\n")
    examples = read_relations(path)
    next(examples)
    with pytest.raises(UserError) as error:
        next(examples)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere.jsonl: cannot be read"):
        next(read_relations(Path("nowhere.jsonl")))
