"""`compare --set`: values become a grid of variants with readable labels, and a mistake is one line."""

import pytest

from minigpt.cli.variants import load_variants, split_values
from minigpt.config import CompareConfig
from minigpt.errors import UserError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,3e-3", ["1e-3", "3e-3"]),
        ("[8,null],null", ["[8,null]", "null"]),
        ("{a: [1,2], b: 3},x", ["{a: [1,2], b: 3}", "x"]),
        ("'a,b',it's,c", ["'a,b'", "it's", "c"]),
        ("story.txt", ["story.txt"]),
    ],
)
def test_values_are_split_at_the_commas_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_several_settings_make_a_product_and_one_value_applies_to_all() -> None:
    words = ["optimizer.learning_rate=1e-3,3e-3", "model.window=[8,null],null", "data.source=story.txt"]
    variants = load_variants(CompareConfig(["tiny"], set=words))
    assert [variant.label for variant in variants] == [
        "learning_rate=0.001 window=[8,null]",
        "learning_rate=0.001 window=null",
        "learning_rate=0.003 window=[8,null]",
        "learning_rate=0.003 window=null",
    ]
    assert [variant.config.model.window for variant in variants] == [[8, None], None] * 2
    assert {variant.config.data.source for variant in variants} == {"story.txt"}
    assert len({variant.config.name for variant in variants}) == 4
    assert variants[1].config.name == "tiny-learning_rate-0.001-window-null"


def test_variants_of_several_recipes_are_told_apart() -> None:
    variants = load_variants(CompareConfig(["tiny", "demo"], set=["optimizer.name=adamw,muon"]))
    assert [variant.label for variant in variants] == [
        f"{recipe} optimizer.name={name}" for recipe in ("tiny", "demo") for name in ("adamw", "muon")
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.learnin_rate=1", "unknown setting optimizer.learnin_rate: did you mean optimizer.learning_rate?"),
        ("optimizer.learning_rate=x", "--set optimizer.learning_rate=x: expected float"),
        ("model.n_head=2,5", "--set model.n_head=5: model.n_embd=32 is not divisible"),
        ("model=3", "model is a group of settings"),
        ("model.n_layer", "needs a value"),
        ("seed=1,2", "give the seeds as --seeds 1 2 3"),
        ("model.n_layer=2,2", "n_layer=2 is asked for twice"),
    ],
)
def test_a_mistake_is_one_line_that_names_set(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_variants(CompareConfig(["tiny"], set=[word]))
    assert str(caught.value).startswith("--set")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
