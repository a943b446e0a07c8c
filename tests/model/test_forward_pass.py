"""A forward pass of the default model is read in three files."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import minigpt
from minigpt.config import GPTConfig
from minigpt.model.gpt import GPT

PACKAGE = Path(minigpt.__file__).parent
PAGES = {"config/model.py", "model/gpt.py", "model/attention.py"}


def entered(run: Callable[[], object]) -> set[tuple[str, str]]:
    """(file, function) of everything in minigpt that a call enters; comprehensions count where Python calls them."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found.add((path.relative_to(PACKAGE).as_posix(), f"{frame.f_code.co_name}:{frame.f_code.co_firstlineno}"))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_forward_pass_of_the_default_model_enters_at_most_three_files_and_twelve_functions(training: bool) -> None:
    model = GPT(GPTConfig(vocab_size=65)).train(training)
    tokens = torch.randint(65, (2, 128))
    found = entered(lambda: model(tokens))
    assert {"model/gpt.py", "model/attention.py"} <= {file for file, _ in found} <= PAGES
    assert len(found) <= 12, sorted(found)


def test_the_count_sees_a_variant_leave_the_three_files() -> None:
    model = GPT(GPTConfig(vocab_size=65, similarity="cosine"))
    found = entered(lambda: model(torch.randint(65, (2, 128))))
    assert "model/variants/attend.py" in {file for file, _ in found}
