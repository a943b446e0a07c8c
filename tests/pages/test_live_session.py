"""The live page's session, in Node: it reads what is new, drops what is stale, measures what `inspection` does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from node import run_node
from test_engine import make

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer
from minigpt.inspection.ablation import Kind, ablation
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.statistics import current_token, entropy, first_token, mean_distance, previous_token
from minigpt.model.gpt import GPT
from minigpt.pages.live.page import engine_script
from minigpt.pages.live.tokenizer_data import tokenizer_data
from minigpt.pages.live.weights import live_config, pack_weights

BYTES = BytesTokenizer()
CONTEXT = 80
TEXT = "the cat sat on the mat and looked at the rat that ate the hat"
EDITED = "the cat sat on a mat and looked at the rat that ate the hat"
STATISTICS = {
    "entropy": entropy,
    "previous_token": previous_token,
    "current_token": current_token,
    "first_token": first_token,
    "mean_distance": mean_distance,
}

CODE = """
  const session = new Session(), found = {};
  await session.init(data.init);
  const read = [], forward = session.model.forward;
  session.model.forward = function (tokens, options) {
    read.push(tokens.length);
    return forward.call(this, tokens, options);
  };
  found.first = await session.text({ text: data.text });
  found.patterns = session.patterns({ run: "base" });
  found.scores = session.scores();
  found.next = session.next({ position: 5, count: 4 });
  found.zero = await session.ablations({ kind: "zero" });
  found.mean = await session.ablations({ kind: "mean" });
  read.length = 0;
  found.edited = await session.text({ text: data.edited });
  found.readAfterEdit = read.splice(0);
  found.same = await session.text({ text: data.edited });
  found.readAgain = read.splice(0);
  found.longer = await session.text({ text: data.edited + "s" });
  found.readOneMore = read.splice(0);
  found.shorter = await session.text({ text: data.edited.slice(0, 9) });
  found.readShorter = read.splice(0);
  found.empty = await session.text({ text: "" });
  found.tooLong = await session.text({ text: data.text.repeat(3) });
  found.tokens = await session.text({ tokens: [116, 104, 195, 256] });
  found.switched = await session.interventions({ heads: { "1.0": { mean: true } } });
  found.switchedLoss = (await session.text({ text: data.text })).loss;
  found.back = await session.interventions(null);

  const answers = [], receive = serveSession((answer) => answers.push(answer));
  receive({ id: 1, name: "init", args: data.init });
  ["a", "ab", data.text, data.edited].forEach((text, i) => receive({ id: 2 + i, name: "text", args: { text } }));
  receive({ id: 6, name: "ablations", args: { kind: "zero" } });
  receive({ id: 7, name: "next", args: { position: 0, count: 1 } });
  receive({ id: 8, name: "nothing", args: {} });
  while (answers.length < 8) await new Promise((resolve) => setTimeout(resolve, 5));
  found.order = answers.map(({ id }) => id);
  found.stale = answers.filter(({ id }) => id >= 2 && id <= 4).map(({ result }) => result);
  found.newest = answers.find(({ id }) => id === 5).result.n;
  found.error = answers.find(({ id }) => id === 8).error;

  const chars = new Session();
  await chars.init({ ...data.init, tokenizer: data.chars });
  await chars.text({ text: "the" });
  found.unknown = await chars.text({ text: "the ts" }).catch((error) => error.message);
  return found;
"""


def model_of() -> GPT:
    return make({"vocab_size": BYTES.vocab_size, "context_length": CONTEXT, "n_head": 2})


def losses_of(text: str) -> torch.Tensor:
    tokens = torch.tensor(BYTES.encode(text))
    with torch.no_grad():
        return F.cross_entropy(model_of()(tokens[None])[0, :-1], tokens[1:], reduction="none")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the session answers to all cases: starting Node takes longer than they do."""
    script: Path = tmp_path_factory.mktemp("live") / "engine.js"
    script.write_text(engine_script(), encoding="ascii")
    packed = pack_weights(model_of(), "float32")
    init = {
        "config": live_config(model_of().config),
        "header": packed.header,
        "chunks": packed.chunks,
        "tokenizer": tokenizer_data(BYTES),
    }
    data = {"init": init, "text": TEXT, "edited": EDITED, "chars": tokenizer_data(CharsTokenizer("aceht "))}
    return run_node([script], CODE, data)


def test_surprise_and_loss_are_those_of_pytorch_after_every_edit(found: Any) -> None:
    for name, text in [("first", TEXT), ("edited", EDITED), ("longer", EDITED + "s"), ("shorter", EDITED[:9])]:
        losses = losses_of(text)
        assert found[name]["tokens"] == BYTES.encode(text)
        assert found[name]["surprise"]["base"][0] is None
        bits = [bits * torch.tensor(2.0).log().item() for bits in found[name]["surprise"]["base"][1:]]
        assert bits == pytest.approx(losses.tolist(), abs=1e-4)
        assert found[name]["loss"] == {"base": pytest.approx(float(losses.mean()), abs=1e-4), "changed": None}
    assert found["first"]["offsets"][:2] == [[0, 1], [1, 2]]


def test_an_edit_is_read_from_the_first_token_that_differs(found: Any) -> None:
    same = len("the cat sat on ")
    assert sum(found["readAfterEdit"]) == len(EDITED) - same
    assert found["readAgain"] == []
    assert found["readOneMore"] == [1]
    assert found["readShorter"] == []


def test_a_text_may_be_empty_or_longer_than_the_context_or_given_as_tokens(found: Any) -> None:
    assert found["empty"]["tokens"] == [BYTES.end_of_text]
    assert found["empty"]["loss"]["base"] is None
    assert (found["tooLong"]["n"], found["tooLong"]["total"]) == (CONTEXT, 3 * len(TEXT))
    assert found["tokens"]["text"] == "th\ufffd<|endoftext|>"
    assert found["tokens"]["labels"] == ["t", "h", "\u2039c3\u203a", "\u2039end of text\u203a"]


def test_patterns_statistics_and_next_tokens_are_those_of_pytorch(found: Any) -> None:
    model, tokens = model_of(), torch.tensor([BYTES.encode(TEXT)])
    with capture_attention(model) as captured, torch.no_grad():
        logits = model(tokens)[0]
    n = tokens.shape[1]
    lower = torch.ones(n, n).tril().bool()
    maps = [weights[0].float() for weights in captured]
    expected = torch.cat([head[lower] for layer in maps for head in layer])
    assert found["patterns"]["weights"] == pytest.approx(expected.tolist(), abs=1e-5)
    for layer, heads in enumerate(maps):
        for name, statistic in STATISTICS.items():
            means = statistic(heads, torch.arange(n)).nanmean(-1)
            for head, mean in enumerate(means.tolist()):
                assert found["scores"][f"{layer}.{head}"][name] == pytest.approx(mean, abs=1e-4)
    best = logits[5].softmax(0).topk(4)
    assert [each["token"] for each in found["next"]] == best.indices.tolist()
    assert [each["probability"] for each in found["next"]] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_the_loss_without_each_part_is_that_of_inspection(found: Any, kind: Kind) -> None:
    assert len(found[kind]) == 2 * 2 + 3 * 2, "heads; attention, MLP and both of each layer"
    measured = ablation(model_of(), torch.tensor([BYTES.encode(TEXT)]), kind=kind, parts=list(found[kind]))
    for name, change in zip(found[kind], measured.mean.tolist(), strict=True):
        assert found[kind][name] == pytest.approx(change, abs=1e-4), name


def test_interventions_are_read_beside_the_model_as_it_was_trained(found: Any) -> None:
    assert found["switched"]["loss"]["changed"] != pytest.approx(found["switched"]["loss"]["base"], abs=1e-6)
    change = found["switchedLoss"]["changed"] - found["switchedLoss"]["base"]
    assert change == pytest.approx(found["mean"]["1.0"], abs=1e-9), "the mean is that of the new text"
    assert found["back"]["surprise"]["changed"] is None


def test_only_the_newest_text_is_computed_and_long_measurements_hold_up_no_other_call(found: Any) -> None:
    assert found["stale"] == [None, None, None]
    assert found["newest"] == len(EDITED)
    assert found["order"] == [1, 2, 3, 4, 5, 7, 8, 6]
    assert "is not a function" in found["error"]


def test_an_unknown_character_is_named(found: Any) -> None:
    assert found["unknown"].startswith("character 's' (U+0073) at position 5")
