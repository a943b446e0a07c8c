"""The live page's model in JavaScript against PyTorch's, in Node: logits, cache, trace, interventions, weights."""

import dataclasses
import math
import random
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import covering
from node import run_node
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.inspection.ablation import Kind, ablation
from minigpt.inspection.hooks import hooks, run_with_cache
from minigpt.model.gpt import GPT
from minigpt.pages.live import weights
from minigpt.pages.live.weights import live_config, pack_weights, quantised_model, unsupported

FOLDER = Path(weights.__file__).parent
ENGINE = [
    FOLDER / f"{name}.js"
    for name in ("weights", "kernels", "cache", "trace", "attention", "model", "interventions", "explain")
]
TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
T, END = 20, 7
AXES: dict[str, Sequence[Any]] = {
    "similarity": ("scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"),
    "position": ("rotary", "learned", "sinusoidal", "alibi", "none"),
    "norm": ("rmsnorm", "layernorm"),
    "block": ("pre_norm", "post_norm", "parallel"),
    "mlp": ("swiglu", "gelu", "gelu_exact"),
    "qk_norm": (True, False),
    "qk_norm_per_head": (True, False),
    "n_kv_head": (None, 2),
    "head_dim": (None, 12),
    "window": (None, 3, [5, None]),
    "logit_softcap": (None, 2.0),
    "document_mask": (False, True),
    "bias": (True, False),
    "qkv_bias": (None, True),
    "tie_embeddings": (False, True),
    "softmax_temperature": (1.0, 0.7),
    "hopfield_beta": (None, 0.5),
    "hopfield_steps": (2, 3),
    "rotary_fraction": (1.0, 0.5),
    "rotary_scaling": (
        None,
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ),
}
DEFAULT = {field.name: field.default for field in dataclasses.fields(GPTConfig)}


def random_settings(count: int) -> list[dict[str, Any]]:
    """Settings that the config accepts: of each axis its default or another value."""
    generator, found = random.Random(0), list[dict[str, Any]]()
    while len(found) < count:
        settings = {name: generator.choice(values) for name, values in AXES.items()}
        # A setting that only some similarities or positions have is left out where it is refused.
        for name in ("n_kv_head", "qk_norm_per_head", *list(AXES)[15:], "logit_softcap", "position"):
            try:
                GPTConfig(**TINY, **settings)
            except UserError:
                settings[name] = DEFAULT[name] if name != "position" else "learned"
        found.append(settings)
    return found


SETTINGS = random_settings(200)
QUICK = covering([[repr(value) for value in settings.values()] for settings in SETTINGS], strength=1)


def made(seed: int = 0, **settings: Any) -> GPT:
    """A model whose every weight matters: gains and biases are random too, and scores differ."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**TINY, **settings}, end_of_text=END)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0).add_(0.02 * torch.randn_like(parameter))
    return model


def text(seed: int = 0, n: int = T) -> Tensor:
    tokens = torch.randint(0, TINY["vocab_size"], (n,), generator=torch.Generator().manual_seed(seed))
    tokens[6] = tokens[13] = END
    return tokens


def packed(model: GPT, kind: Any = "float32") -> dict[str, Any]:
    header, chunks = pack_weights(model, kind)
    return {"config": live_config(model.config), "header": header, "chunks": chunks, "tokens": text().tolist()}


OPEN = "const open = async ({ config, header, chunks }) => new GPT(config, await loadTensors(header, chunks));"


def in_node(code: str, data: object) -> Any:
    return run_node(ENGINE, OPEN + code, data)


READ_IN_PARTS = """
return Promise.all(data.map(async (each) => {
  const model = await open(each), whole = model.forward(each.tokens), V = each.config.vocab_size;
  const cache = model.cache(), trace = new Trace(each.config), n = each.tokens.length;
  model.forward(each.tokens.slice(0, 9).reverse(), { cache, trace, logits: "none" });
  cache.truncate(0);
  trace.truncate(0);
  const rows = [model.forward(each.tokens.slice(0, 9), { cache, trace })];
  for (let t = 9; t < n; t++) rows.push(model.forward([each.tokens[t]], { cache, trace, logits: "last" }));
  const weigh = (kept) => { cache.truncate(kept); trace.truncate(kept); };
  weigh(5);
  rows.push(model.forward(each.tokens.slice(5), { cache, trace }));
  const parts = rows.flatMap((row) => Array.from(row)), twice = [...whole, ...whole.slice(5 * V)];
  const difference = parts.reduce((most, x, i) => Math.max(most, Math.abs(x - twice[i])), 0);
  return { whole, difference, n: [parts.length - twice.length, trace.length - n] };
}));
"""


def check_parity(choices: Sequence[dict[str, Any]]) -> None:
    models = [made(**settings) for settings in choices]
    for settings, model, found in zip(
        choices, models, in_node(READ_IN_PARTS, [packed(model) for model in models]), strict=True
    ):
        with torch.no_grad():
            expected = model(text()[None])[0]
        difference = (torch.tensor(found["whole"]).view(T, -1) - expected).abs().max()
        assert difference < 1e-4, (settings, difference)
        assert found["difference"] < 1e-5, settings
        assert found["n"] == [0, 0], settings


def test_logits_equal_pytorchs_read_whole_in_parts_and_after_an_edit() -> None:
    check_parity([SETTINGS[n] for n in QUICK] + [{}])


@pytest.mark.slow
def test_logits_equal_pytorchs_for_many_settings_together() -> None:
    check_parity(SETTINGS)


def test_the_scripts_know_every_variant_of_the_model() -> None:
    hints = typing.get_type_hints(GPTConfig)
    for name, known in weights._KNOWN.items():
        assert set(typing.get_args(hints[name])) == known
        if name != "norm":
            assert set(AXES[name]) == known
    assert unsupported(GPTConfig()) is None


def test_a_variant_without_a_script_is_refused_when_the_page_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights._KNOWN, "mlp", {"gelu"})
    with pytest.raises(UserError, match=r"model\.mlp=swiglu: the live page cannot compute it"):
        live_config(GPTConfig())


WRITTEN = """
const model = await open(data), cache = model.cache(), written = [];
for (let next = data.tokens.slice(0, 4); written.length < 100; next = written.slice(-1)) {
  const logits = model.forward(next, { cache, logits: "last" });
  written.push(logits.indexOf(Math.max(...logits)));
}
return written;
"""


def test_a_hundred_tokens_written_greedily_are_pytorchs() -> None:
    model = made(context_length=128)
    tokens = text()[:4]
    with torch.no_grad():
        for _ in range(100):
            tokens = torch.cat([tokens, model(tokens[None])[0, -1:].argmax(-1)])
    written = in_node(WRITTEN, packed(model))
    assert written == tokens[4:].tolist()
    assert len(set(written)) > 10  # no loop over a few tokens, in which a fault would not show


def test_chromium_computes_the_same_logits(browser: Any) -> None:
    model = made()
    page = browser.new_page()
    page.add_script_tag(content="\n".join(path.read_text() for path in ENGINE) + OPEN)
    found = page.evaluate("async (data) => Array.from((await open(data)).forward(data.tokens))", packed(model))
    page.close()
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found).view(T, -1), model(text()[None])[0], rtol=0, atol=1e-4)


TRACED = """
return Promise.all(data.map(async (each) => {
  const model = await open(each), trace = new Trace(each.config);
  model.forward(each.tokens, { trace, logits: "none" });
  const row = (weights) => each.tokens.map((_, key) => weights[key] ?? 0);
  const rows = (layer, head) => each.tokens.map((_, query) => row(trace.weights(layer, head, query)));
  const patterns = each.config.windows.map((_, layer) => [0, 1, 2, 3].map((head) => rows(layer, head)));
  return { ...trace, patterns, lens: model.lens(trace.residual[1][3]) };
}));
"""


def test_the_trace_is_what_hooks_read_from_pytorch() -> None:
    models = [made(block=block, position="learned", n_kv_head=2) for block in ("pre_norm", "post_norm", "parallel")]
    for model, found in zip(models, in_node(TRACED, [packed(model) for model in models]), strict=True):
        with torch.no_grad():
            _, cache = run_with_cache(model, text()[None])
        for layer in (0, 1):
            for name, expected in {
                "z": cache["z", layer][0].flatten(1),
                "attnOut": cache["attn_out", layer][0],
                "mlpOut": cache["mlp_out", layer][0],
                "residual": cache["resid_pre", layer][0],
            }.items():
                torch.testing.assert_close(torch.tensor(found[name][layer]), expected, rtol=1e-4, atol=1e-5)
            patterns = torch.tensor(found["patterns"][layer], dtype=torch.float32)
            torch.testing.assert_close(patterns, cache["pattern", layer][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(found["residual"][2]), cache["resid_post", 1][0], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            lens = model.logits(model.final_norm(cache["resid_pre", 1][0, 3]))
        torch.testing.assert_close(torch.tensor(found["lens"]), lens, rtol=1e-4, atol=1e-4)


ABLATED = """
const each = data.page, model = await open(each), V = each.config.vocab_size, inputs = each.tokens.slice(0, -1);
const trace = new Trace(each.config);
model.forward(inputs, { trace });
const means = meansOf(trace);
const losses = (interventions) => {
  const logits = model.forward(inputs, { interventions, means });
  const row = (t) => softmax(Float64Array.from(logits.subarray(t * V, (t + 1) * V)));
  return inputs.map((_, t) => -Math.log(row(t)[each.tokens[t + 1]]));
};
const whole = losses(null);
return data.specs.map((spec) => losses(spec).map((loss, t) => loss - whole[t]));
"""


def specification(part: str, kind: str) -> dict[str, Any]:
    if "." in part:
        return {"heads": {part: {"mean": True} if kind == "mean" else {"scale": 0}}}
    where = {"mlp": "mlps", "attn": "attentions", "layer": "layers"}[part.rstrip("0123456789")]
    return {where: {part.lstrip("mlpatnyer"): kind}}


@pytest.mark.parametrize("settings", [{}, {"block": "post_norm", "norm": "layernorm", "bias": True}])
def test_zero_and_mean_ablation_equal_inspection(settings: dict[str, Any]) -> None:
    model, kinds = made(**settings), typing.cast("tuple[Kind, ...]", ("zero", "mean"))
    parts = ["0.0", "0.3", "1.2", "mlp0", "mlp1", "attn0", "attn1", "layer0", "layer1"]
    specs = [specification(part, kind) for kind in kinds for part in parts]
    found = torch.tensor(in_node(ABLATED, {"page": packed(model, "float16"), "specs": specs}))

    def changes(model: GPT) -> Tensor:
        return torch.cat([ablation(model, text()[None], kind=kind, parts=parts).changes[:, 0] for kind in kinds])

    torch.testing.assert_close(found, changes(quantised_model(model, "float16")), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mean(1), changes(model).mean(1), rtol=0, atol=1e-3)
    assert found.abs().amax(1).min() > 0.01  # every part matters


CHANGED = """
const each = data.page, model = await open(each);
return data.specs.map((interventions) => {
  const cache = model.cache(), trace = new Trace(each.config);
  const whole = model.forward(each.tokens, { interventions, trace });
  model.forward(each.tokens.slice(0, 9), { interventions, cache });
  const rest = model.forward(each.tokens.slice(9), { interventions, cache });
  return { whole, rest, row: trace.weights(1, 2, 6) };
});
"""
SPECS: list[dict[str, Any]] = [
    {"heads": {"1.2": {"scale": 2.5}}},
    {"heads": {"1.2": {"attend": "previous"}, "0.1": {"attend": "first"}}},
    {"cells": [{"layer": 1, "head": 2, "query": 6, "key": 3, "weight": 0.5}]},
    {
        "cells": [
            {"layer": 1, "head": 2, "query": 6, "key": key, "weight": weight}
            for key, weight in ((0, 0.25), (6, 0.5), (9, 1.0))
        ]
    },
    {"cells": [{"layer": 1, "head": 2, "query": 6, "key": 3, "weight": 3.0}]},
]


def change_in_torch(model: GPT, spec: dict[str, Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and weights of head 1.2 under a specification, written down with hooks."""

    def pattern(weights: Tensor, name: str) -> Tensor:
        weights, layer = weights.clone(), int(name.split(".")[1])
        for head, change in spec.get("heads", {}).items():
            if "attend" in change and int(head[0]) == layer:
                keys = [0 if change["attend"] == "first" else max(t - 1, 0) for t in range(T)]
                weights[0, int(head[2])] = torch.nn.functional.one_hot(torch.tensor(keys), T).float()
        cells = {cell["key"]: cell["weight"] for cell in spec.get("cells", []) if cell["layer"] == layer}
        if cells := {key: weight for key, weight in cells.items() if key <= 6}:
            row = weights[0, 2, 6]
            row[list(cells)] = 0.0
            row *= max(0.0, 1 - sum(cells.values())) / row.sum()
            row[list(cells)] = torch.tensor(list(cells.values())) / max(1.0, sum(cells.values()))
        return weights

    def scaled(z: Tensor, _: str) -> Tensor:
        z = z.clone()
        z[:, :, 2] *= spec.get("heads", {}).get("1.2", {}).get("scale", 1)
        return z

    seen = list[Tensor]()
    changes = hooks(model, {"blocks.*.attn.pattern": pattern, "blocks.1.attn.z": scaled})
    with torch.no_grad(), changes, hooks(model, {"blocks.1.attn.pattern": lambda weights, _: seen.append(weights)}):
        return model(tokens[None])[0], seen[0][0, 2, 6, :7]


def test_scaled_and_forced_heads_and_edited_cells_equal_hooks_with_a_cache_too() -> None:
    model = made()
    for spec, found in zip(SPECS, in_node(CHANGED, {"page": packed(model), "specs": SPECS}), strict=True):
        logits, row = change_in_torch(model, spec, text())
        torch.testing.assert_close(torch.tensor(found["whole"]).view(T, -1), logits, rtol=0, atol=1e-4, msg=str(spec))
        torch.testing.assert_close(torch.tensor(found["rest"]).view(T - 9, -1), logits[9:], rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(found["row"], dtype=torch.float32), row, rtol=1e-4, atol=1e-6)
        assert math.isclose(sum(found["row"]), 1, abs_tol=1e-6)


def test_a_mean_without_the_means_of_a_run_is_refused() -> None:
    code = """
        const model = await open(data), interventions = { layers: { 0: "mean" } };
        try { model.forward([1], { interventions }); } catch (error) { return error.message; }"""
    assert "give forward the means" in in_node(code, packed(made()))


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_rounded_weights_give_the_logits_of_their_twin_in_torch(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 20_001)  # tensors cross the borders of chunks
    model = made(tie_embeddings=True)
    with torch.no_grad():
        model.token_embedding.weight[3] = 0.0  # a row without a scale
        expected = quantised_model(model, kind)(text()[None])[0]
        assert (expected - model(text()[None])[0]).abs().max() > 1e-4
    page = packed(model, kind)
    assert len(page["chunks"]) > 1
    code = "return [model.tokenEmbedding.data.constructor.name, model.forward(data.tokens)];"
    found = in_node(f"const model = await open(data); {code}", page)
    assert found[0] == {"int8": "Int8Array", "float16": "Float32Array"}[kind]
    torch.testing.assert_close(torch.tensor(found[1]).view(T, -1), expected, rtol=0, atol=1e-4)


def test_an_incomplete_page_says_so() -> None:
    page = packed(made())
    page["header"]["n_bytes"] += 4
    code = "try { await open(data); } catch (error) { return error.message; }"
    assert "the page is not complete" in in_node(code, page)


def test_weights_without_a_value_are_refused() -> None:
    model = made()
    with torch.no_grad():
        model.blocks[0].mlp.proj.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.proj\.weight .* in float16: take --weights int8 or float32"):
        pack_weights(model, "float16")
    pack_weights(model, "int8")
    with torch.no_grad():
        model.blocks[0].mlp.proj.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"NaN or inf: take an earlier checkpoint"):
        pack_weights(model, "int8")


EXPLAINED = """
const model = await open(data), run = { cache: model.cache(), trace: new Trace(data.config) };
model.forward(data.tokens, { ...run, logits: "none" });
const found = model.explain(data.tokens, 1, 2, 11), again = model.explain(data.tokens, 1, 2, 11, null, run);
found.isSame = JSON.stringify(found) === JSON.stringify(again);
return found;
"""


@pytest.mark.parametrize("block", ["pre_norm", "post_norm", "parallel"])
def test_every_number_of_the_lesson_is_what_hooks_read(block: str) -> None:
    model = made(block=block, n_kv_head=2, bias=True)
    found = in_node(EXPLAINED, packed(model))
    with torch.no_grad():
        logits, cache = run_with_cache(model, text()[None])
    at, layer, head, key_head = 11, 1, 2, 1
    assert found["isSame"]
    assert found["token"] == text()[at]
    for name, expected in {
        "embedding": model.token_embedding.weight[text()[at]],
        "streamBefore": cache["resid_pre", layer][0, at],
        "attnInput": cache["ln1.out", layer][0, at] if block != "post_norm" else cache["resid_pre", layer][0, at],
        "queryBefore": cache["attn.q", layer][0, at, head],
        "query": cache["attn.rot_q", layer][0, at, head],
        "keys": cache["attn.rot_k", layer][0, :, key_head],
        "values": cache["attn.v", layer][0, :, key_head],
        "weightedSum": cache["attn.z", layer][0, at, head],
        "attnOut": cache["attn_out", layer][0, at],
        "streamAfterAttn": cache["resid_pre", layer][0, at] + cache["attn_out", layer][0, at],
        "mlpHidden": cache["mlp.post", layer][0, at],
        "mlpOut": cache["mlp_out", layer][0, at],
        "streamAfter": cache["resid_post", layer][0, at],
        "finalNormed": cache["final_norm"][0, at],
    }.items():
        got = torch.tensor(found[name]["data"]).view(found[name]["shape"])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=name)
    products = torch.tensor(found["products"]["data"])
    before = torch.tensor(found["scoresBeforeMask"]["data"])
    torch.testing.assert_close(products * found["scale"], before, rtol=1e-4, atol=1e-5)
    # What later tokens would have got, and -Infinity (null in JSON) after the mask.
    assert [score is None for score in found["scores"]["data"]] == [s > at for s in range(T)]
    torch.testing.assert_close(torch.tensor(found["weights"]["data"])[: at + 1], before[: at + 1].softmax(0))
    best = logits[0, at].topk(10)
    assert [each["token"] for each in found["top"]] == best.indices.tolist()
    assert found["top"][0]["probability"] == pytest.approx(logits[0, at].softmax(0).max().item(), abs=1e-5)


EXPLAINED_EACH = """
return Promise.all(data.map(async (each) => {
  const model = await open(each), { weights, scores, top } = model.explain(each.tokens, 1, 2, 11);
  return { weights: weights.data, expected: softmax(Float64Array.from(scores.data)), top };
}));
"""


def test_the_lesson_explains_every_similarity() -> None:
    kinds = [{"similarity": kind, "position": "alibi" if kind != "linear" else "none"} for kind in AXES["similarity"]]
    kinds += [{"logit_softcap": 1.5}, {"window": 4}, {"document_mask": True}]
    models = [made(**settings) for settings in kinds]
    for settings, model, found in zip(
        kinds, models, in_node(EXPLAINED_EACH, [packed(model) for model in models]), strict=True
    ):
        with torch.no_grad():
            logits, cache = run_with_cache(model, text()[None])
        pattern, weights = cache["pattern", 1][0, 2, 11], torch.tensor(found["weights"], dtype=torch.float32)
        torch.testing.assert_close(weights, pattern, rtol=1e-4, atol=1e-5, msg=str(settings))
        if settings.get("similarity") not in {"linear", "hard"}:  # those two have no softmax
            torch.testing.assert_close(torch.tensor(found["expected"]), pattern, rtol=1e-4, atol=1e-5)
        assert found["top"][0]["token"] == logits[0, 11].argmax()
