"""The live page's filters and draws (sample.js) against generation/sampling.py, and the text that they write."""

from typing import Any

import numpy as np
import torch
from node import run_node
from test_live_model import ENGINE, OPEN

from minigpt.config import GenerationConfig, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.generation.generator import Writer
from minigpt.generation.sampling import apply_filters
from minigpt.model.gpt import GPT
from minigpt.pages.live.tokenizer_data import tokenizer_data
from minigpt.pages.live.weights import live_config, pack_weights

SCRIPT = ENGINE[0].parent / "sample.js"
_STAGES = """
return data.map(({ logits, settings, seen }) =>
  candidates(Float32Array.from(logits), settings, seen).stages
    .map((stage) => ({ name: stage.name, tokens: stage.tokens, probabilities: probabilities(stage) })));
"""
_FREQUENCIES = """
const count = (settings, seed, n) => {
  const counts = new Array(data.length).fill(0), random = new Random(seed);
  const stage = candidates(Float32Array.from(data), settings).stages.at(-1);
  for (let i = 0; i < n; i++) counts[draw(stage, random)]++;
  return counts;
};
const first = (seed) => { const random = new Random(seed); return [random.uniform(), random.uniform()]; };
return { free: count({ temperature: 1 }, 7, 50000), again: count({ temperature: 1 }, 7, 50000),
         greedy: count({ temperature: 0 }, 7, 100), filtered: count({ temperature: 1, top_k: 2 }, 7, 100),
         impossible: count({ min_p: 0.5, temperature: 1 }, 7, 100),
         seeds: [0, 1, 2, 2 ** 32 - 1].map(first) };
"""


def cases() -> list[dict[str, Any]]:
    """Logits with ties and without, with all kinds of settings."""
    random = np.random.default_rng(0)
    made = []
    for i in range(200):
        V = int(random.choice([1, 2, 7, 300]))
        logits = (random.standard_normal(V) * random.choice([0, 0.1, 3, 30])).astype(np.float32)
        if i % 3 == 0:
            logits = np.round(logits)  # ties
        settings = {
            "repetition_penalty": float(random.choice([1, 1, 0.7, 1.3, 5])),
            "temperature": float(random.choice([0, 0.3, 0.8, 1, 1, 1.7])),
            "top_k": random.choice([None, 1, 2, 5, 40, V, 5000]),
            "top_p": random.choice([None, 1e-6, 0.5, 0.9, 0.999, 1.0]),
            "min_p": random.choice([None, 0.0, 0.01, 0.3, 1.0]),
        }
        seen = random.integers(0, V, int(random.choice([0, 3, 50]))).tolist()
        made.append({"logits": logits.tolist(), "settings": settings, "seen": seen})
    return made


def test_the_filters_keep_the_same_tokens_with_the_same_probabilities_in_the_same_order() -> None:
    made = cases()
    for case, stages in zip(made, run_node([SCRIPT], _STAGES, made), strict=True):
        config = GenerationConfig(**case["settings"])
        expected = list(apply_filters(np.array(case["logits"], np.float32), config, case["seen"]))
        if config.temperature == 0:
            assert stages[-1]["tokens"] == [int(expected[-1][1].logits.argmax())]
            assert stages.pop()["probabilities"] == [1]
        assert [stage["name"] for stage in stages] == [name for name, _ in expected]
        for stage, (_, kept) in zip(stages, expected, strict=True):
            assert stage["tokens"] == kept.tokens.tolist(), case["settings"]
            exps = np.exp(kept.logits - kept.logits.max())
            np.testing.assert_allclose(stage["probabilities"], exps / exps.sum(), rtol=1e-9, atol=0)


def test_tokens_are_drawn_by_their_probabilities_and_the_same_seed_draws_the_same() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    drawn = run_node([SCRIPT], _FREQUENCIES, logits.tolist())

    np.testing.assert_allclose(np.array(drawn["free"]) / 50_000, np.exp(logits), atol=0.01)
    assert drawn["again"] == drawn["free"]
    assert drawn["greedy"] == [100, 0, 0, 0]
    assert drawn["filtered"][2:] == [0, 0]
    assert drawn["impossible"][2:] == [0, 0]
    uniform = np.array(drawn["seeds"])
    assert len(np.unique(uniform)) == uniform.size
    assert ((uniform >= 0) & (uniform < 1)).all()


_WRITE = """
const model = await open(data), tokenizer = makeTokenizer(data.tokenizer);
const write = (settings, seed) => {
  const tokens = tokenizer.encode(data.prompt), random = new Random(seed), cache = model.cache();
  for (let unread = tokens; tokens.length < data.length; unread = tokens.slice(-1)) {
    const { stages } = candidates(model.forward(unread, { cache, logits: "last" }), settings, tokens);
    tokens.push(draw(stages.at(-1), random));
  }
  return tokenizer.decode(tokens);
};
const settings = { temperature: 0.8, top_k: 50, top_p: 0.95, repetition_penalty: 1.1 };
const greedy = write({ temperature: 0, repetition_penalty: 1.3 }, 1);
return { greedy, drawn: [5, 5, 6].map((seed) => write(settings, seed)) };
"""


def test_greedy_text_is_pythons_and_a_seed_writes_the_same_text_twice() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, context_length=128, n_layer=2, n_head=2, n_embd=32, end_of_text=256)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.3)
    header, chunks = pack_weights(model, "float32")
    tokenizer, prompt = BytesTokenizer(), "naïve 🙂"
    data = {"config": live_config(model.config), "header": header, "chunks": chunks, "prompt": prompt, "length": 110}
    scripts = [*ENGINE, SCRIPT.with_name("tokenizer.js"), SCRIPT]
    found = run_node(scripts, OPEN + _WRITE, data | {"tokenizer": tokenizer_data(tokenizer)})

    settings = GenerationConfig(temperature=0, repetition_penalty=1.3, max_new_tokens=110 - len(prompt.encode()))
    written = Writer(model, tokenizer).generate(prompt, settings)
    assert found["greedy"] == prompt + written.text
    assert len(set(written.tokens)) > 20
    assert len(written.tokens) >= 99
    first, again, other = found["drawn"]
    assert first == again
    assert first != other
