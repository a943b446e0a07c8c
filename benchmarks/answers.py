"""Conversations about `references` stories -> does a model trained on the answers alone answer held-out ones right?

`make answers`. Each story is told in the first question, and each question asks what a word of it refers to, which the
story's ground truth says. The held-out stories are others. Answers are greedy, and right if their text is the same.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness import RESULTS, Parser, Table, machine

os.environ.setdefault("OMP_NUM_THREADS", "2")

from minigpt.data.relations import Relation
from minigpt.data.synthetic.texts import references
from minigpt.files import write_text

STORIES, QUESTIONS = 20_000, 500
STEPS = 550
BOUND = 0.95
RECIPE = [
    "--data.answer_column=messages",
    "--data.mode=examples",
    "--data.tokenizer=bpe:2048",
    "--data.val_fraction=0.01",
    "--data.batch_size=16",
    "--model.context_length=192",
    "--model.n_layer=3",
    "--model.n_head=4",
    "--model.n_embd=128",
    # Each noun is an answer a few times only. With one table for reading and writing, a head that copies one noun
    # copies all of them; a first layer that sees four tokens soon has heads for the previous one.
    "--model.tie_embeddings=true",
    "--model.window=[4,null,null]",
    "--optimizer.name=muon",
    "--optimizer.learning_rate=8e-3",
    "--optimizer.schedule=linear",
    "--attention.enabled=false",
]


def questions(story: str, relations: list[Relation]) -> list[tuple[str, str]]:
    """(question, answer) for every word of a story that refers to an earlier one by another word."""
    found = {}
    for relation in relations:
        word, meant = story[slice(*relation.source)], story[slice(*relation.target)]
        if relation.name in {"pronoun", "possessive", "reflexive"}:
            found[f'Who or what is "{word.lower()}"?'] = f"That is {meant}."
        elif relation.name == "noun_phrase" and word != meant:
            found[f"Who or what is the {word}?"] = f"That is {meant}."
    return list(found.items())


def conversations(seed: int, n_stories: int) -> Iterator[list[dict[str, str]]]:
    """All questions about each story, in random order: the first one tells the story."""
    shuffle = random.Random(seed).shuffle
    for story, relations in islice(references(seed), n_stories):
        asked = questions(story, relations)
        shuffle(asked)
        messages = []
        for number, (question, answer) in enumerate(asked):
            content = question if number else f"{story} {question}"
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        if messages:
            yield messages


def main(arguments: list[str]) -> None:
    """Train, ask, count; exit code 1 below the bound."""
    parser = Parser(description="Train on conversations, and count the right answers.", allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the training, {STEPS} by default")
    parser.add_argument("--quick", action="store_true", help="few stories, questions and steps: does it run?")
    parser.add_argument("--write", action="store_true", help="also into benchmarks/results/answers.md")
    parser.add_argument("settings", nargs="*", help="further settings of the training, such as --data.batch_size=32")
    chosen, settings = parser.parse_known_args(arguments)
    settings += chosen.settings
    n_stories, n_questions = (300, 20) if chosen.quick else (STORIES, QUESTIONS)
    steps = 4 if chosen.quick else chosen.steps
    with tempfile.TemporaryDirectory(prefix="minigpt-answers-") as folder:
        path, seconds = trained(Path(folder), n_stories, steps, settings)
        right, wrong = asked(path, n_questions)
    share = right / n_questions
    rows = [[str(steps), f"{seconds / steps:.3f}", f"{seconds:.0f}", f"{right} of {n_questions}"]]
    header = ["steps", "seconds a step", "seconds", "right answers"]
    mistakes = "\n".join(f"- {question} {said!r} instead of {answer!r}" for question, answer, said in wrong[:5])
    verdict = f"The bound is {BOUND:.0%}: {'met' if share >= BOUND else 'NOT met'}, with {share:.1%}."
    text = (
        f"# Answers: held-out questions about `references` stories\n\n{machine('cpu')}\n\n"
        f"{n_stories:,} stories to train on, others to ask about, each question as the first turn of a "
        f"conversation; greedy. The loss is\non the answers alone. Settings: `{' '.join([*RECIPE, *settings])}`\n\n"
        f"{Table('answers', header, rows)}\n\n{verdict}\n" + (f"\nMistakes:\n\n{mistakes}\n" if wrong else "")
    )
    print(f"\n{text}")
    if chosen.write:
        write_text(RESULTS / "answers.md", text)
    if share < BOUND:
        sys.exit(1)


def trained(folder: Path, n_stories: int, steps: int, settings: list[str]) -> tuple[Path, float]:
    """The run, and the seconds of its steps."""
    from minigpt.cli.parsing import parse_training
    from minigpt.training.run import train

    source = folder / "stories.jsonl"
    source.write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations(1, n_stories)))
    places = [f"--data.source={source}", f"--data.dir={folder / 'data'}", f"--runs_dir={folder / 'runs'}"]
    lengths = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={max(1, steps // 4)}"]
    config, _ = parse_training([*places, *lengths, *RECIPE, *settings])
    began = time.monotonic()
    run = train(config, None)
    return run.path, time.monotonic() - began


def asked(run: Path, n_questions: int) -> tuple[int, list[tuple[str, str, str]]]:
    """The number of right answers; and of the others question, answer, and the model's."""
    from minigpt.generation.generator import Writer

    writer = Writer.load(run)
    every = (
        (story, question, answer)
        for story, relations in references(99)
        for question, answer in questions(story, relations)
    )
    held_out = list(islice(every, n_questions))
    wrong = []
    for start in range(0, len(held_out), 50):
        some = held_out[start : start + 50]
        found = writer.generate_many([f"{story} {question}" for story, question, _ in some], temperature=0)
        wrong += [
            (f"{story} {question}", answer, completion.text)
            for (story, question, answer), completion in zip(some, found, strict=True)
            if completion.text != answer
        ]
    return len(held_out) - len(wrong), wrong


if __name__ == "__main__":
    main(sys.argv[1:])
