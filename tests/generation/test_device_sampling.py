"""Draws of all rows at once on the device, against the draws of one row in numpy."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from grids import sampled

from minigpt.config import GenerationConfig
from minigpt.generation.device_sampling import DeviceSampler
from minigpt.generation.sampling import Generator, apply_filters, draw

AXES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 0.7, 1.0),
    "top_k": (None, 1, 5, 1000),
    "top_p": (None, 0.3, 0.95, 1.0),
    "min_p": (None, 0.05, 1.0),
    "repetition_penalty": (1.0, 0.5, 1.7),
    "forbidden_tokens": ([], [0, 3, 59]),
}
TEXTS = [[1, 2, 3], [7], [5, 5, 59, 30], [0]]


@pytest.mark.parametrize("settings", sampled([dict(zip(AXES, each, strict=True)) for each in product(*AXES.values())]))
def test_a_draw_on_the_device_is_that_of_numpy(settings: dict[str, Any]) -> None:
    config = GenerationConfig(**settings)
    torch.manual_seed(0)
    texts = [list(text) for text in TEXTS]
    sampler = DeviceSampler(config, 60, texts, "cpu")
    generators, own = ([Generator(i) for i in range(len(texts))] for _ in range(2))
    for _ in range(10):
        logits = (torch.randn(len(texts), 60) * 3).round(decimals=1)  # with ties
        uniform = torch.tensor([generator.uniform() for generator in own], dtype=torch.float64)
        found = sampler.draw(logits, uniform)
        for row, text in enumerate(texts):
            *_, (_, left) = apply_filters(logits[row].numpy(), config, text)
            token = draw(left, config.temperature, generators[row])
            assert int(found[0, row]) == token
            assert float(found[1, row]) == pytest.approx(float(logits[row].log_softmax(-1)[token]), abs=1e-5)
            text.append(token)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_seen_in_the_total(wrong: float) -> None:
    logits = torch.tensor([[1.0, wrong, 2.0]])
    for temperature in (0.0, 1.0):
        config = GenerationConfig(temperature=temperature, top_k=None)
        found = DeviceSampler(config, 3, [[0]], "cpu").draw(logits, torch.zeros(1, dtype=torch.float64))
        assert not found[2].isfinite().any()
