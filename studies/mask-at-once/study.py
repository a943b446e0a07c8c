"""Under the causal mask, one pass makes all predictions of a text. Without the mask, it reads the answers."""

import copy
import statistics
import time

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.inspection.capture import capture_attention
from minigpt.lab.study import Study, spread
from minigpt.model.gpt import GPT
from minigpt.model.variants.graphs import Causal, Full, Graph, Padding
from minigpt.training.loss import next_token_loss

# A language whose law is known: each word is followed by one of these, all equally likely.
LAW = {".": "the", "the": "old cat dog fox bird", "old": "cat dog fox bird", "a": "ball tree drum house", "and": "the"}
LAW |= dict.fromkeys(("cat", "dog", "fox", "bird"), "sees hears likes sleeps")
LAW |= dict.fromkeys(("sees", "hears", "likes"), "a") | dict.fromkeys(("sleeps", *LAW["a"].split()), ". and")
WORDS = list(LAW)
FOLLOWERS = torch.tensor([[float(word in LAW[before].split()) for word in WORDS] for before in WORDS])
T, BATCH, STEPS = 24, 16, 300
SIZES = {"vocab_size": len(WORDS), "n_layer": 2, "n_head": 2, "n_embd": 32}
C, F = Causal(), Full()
MASKS: dict[str, list[Graph]] = {"both layers": [C, C], "layer 1": [C, F], "layer 2": [F, C], "none": [F, F]}


def texts(n: int, length: int) -> Tensor:
    """(n, length) words drawn by the law."""
    rows = [torch.randint(len(WORDS), (n,))]
    while len(rows) < length:
        rows.append(FOLLOWERS[rows[-1]].multinomial(1)[:, 0])
    return torch.stack(rows, dim=1)


def logits_under(model: GPT, tokens: Tensor, graphs: list[Graph]) -> Tensor:
    """The model's logits with a mask for each layer; `model(tokens)` itself has Causal() in all."""
    x, rotary = model.token_embedding(tokens), model.rotary[:, : tokens.shape[1]]
    for block, graph in zip(model.blocks, graphs, strict=True):
        x = block(x, graph, rotary, None)
    return model.logits(model.final_norm(x))


def loss_under(model: GPT, words: Tensor, graphs: list[Graph], *, at_once: bool = True) -> Tensor:
    """Loss of predicting the words of (B, T) from the second on: in one pass, or from each prefix alone."""
    logits = logits_under(model, words, graphs)[:, :-1]
    if not at_once:
        logits = torch.stack([logits_under(model, words[:, :t], graphs)[:, -1] for t in range(1, T)], dim=1)
    return next_token_loss(logits, words[:, 1:])


def train(graphs: list[Graph], seed: int, steps: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**SIZES, context_length=T))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_under(model, texts(BATCH, T), graphs).backward()
        optimizer.step()
    return model


def write(model: GPT, graphs: list[Graph], n: int) -> Tensor:
    """(n, T) words, each drawn from what the model predicts after the words before it."""
    words = torch.full((n, 1), WORDS.index("."))
    while words.shape[1] < T:
        chances = logits_under(model, words, graphs)[:, -1].softmax(-1)
        words = torch.cat([words, chances.multinomial(1)], dim=1)
    return words


def differences(model: GPT) -> dict[str, float]:
    """Largest differences, in float64, between one pass over a text and one prediction at a time, and with padding."""
    words = texts(1, T + 1)
    at_once = model(words[:, :T])
    prefixes = torch.stack([model(words[:, : t + 1])[:, -1] for t in range(T)], dim=1)
    losses = [next_token_loss(logits, words[:, 1:]) for logits in (at_once, prefixes)]
    slopes = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])]) for loss in losses]
    pairs = {"logits of each prefix": (prefixes, at_once), "gradient of the loss": (slopes[1], slopes[0])}
    # A text of 10 words in a batch with one of T.
    for side, own in (("right", slice(0, 10)), ("left", slice(T - 10, T))):
        batch, real = texts(2, T), torch.ones(2, T, dtype=torch.bool)
        real[1], real[1, own] = False, True
        for name, graph in (("causal", Causal()), ("causal & padding", Causal() & Padding(real, real))):
            alone, both = model(batch[1:, own])[0], logits_under(model, batch, [graph, graph])[1, own]
            pairs[f"padded on the {side}, {name}"] = (both, alone)
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


@torch.no_grad()
def milliseconds(length: int, *, at_once: bool) -> float:
    """Time of predicting each next word of one text."""
    model, tokens = GPT(GPTConfig(**SIZES, context_length=length)), texts(1, length)
    model(tokens)  # the first pass is slower
    began = time.perf_counter()
    for end in [length] if at_once else range(1, length + 1):
        model(tokens[:, :end])
    return 1000 * (time.perf_counter() - began)


def run(study: Study) -> None:
    steps, masks = (STEPS // 2, ("both layers", "none")) if study.quick else (STEPS, tuple(MASKS))
    trained = {name: [train(MASKS[name], seed, steps) for seed in study.seeds] for name in masks}
    found = [differences(copy.deepcopy(model).double()) for model in trained["both layers"]]
    gaps = {name: [each[name] for each in found] for name in found[0]}
    study.table("largest difference", ["to one pass", "over seeds"], [[name, max(each)] for name, each in gaps.items()])
    by_prefix, gradient, right, right_merged, left, left_merged = gaps.values()
    study.finding("One pass equals one prediction at a time, gradient included", max(by_prefix + gradient) < 1e-9)
    merged = max(right + right_merged + left_merged) < 1e-6 < 0.01 < min(left)
    study.finding("Padding merges with the causal mask; on the right it needs no mask, on the left it does", merged)
    rows = []
    for n in (8, 32) if study.quick else (8, 32, 128):
        times = [spread(milliseconds(n, at_once=at_once) for _ in study.seeds) for at_once in (True, False)]
        rows.append([n, n, n * (n + 1) // 2, *times])
    study.table("words computed to predict each word", ["text", "at once", "each prefix anew", "ms", "ms"], rows)

    torch.manual_seed(0)
    held_out = texts(256, T)
    best = FOLLOWERS.sum(dim=1)[held_out[:, :-1]].log().mean().item()
    at_once, apart, rows = {}, {}, [["(the law)", best, best, 1.0, ""]]
    with torch.no_grad():
        for name in masks:
            at_once[name] = [loss_under(model, held_out, MASKS[name]).item() for model in trained[name]]
            apart[name] = [loss_under(model, held_out, MASKS[name], at_once=False).item() for model in trained[name]]
            own = [write(model, MASKS[name], 64) for model in trained[name]]
            share = spread(FOLLOWERS[words[:, :-1], words[:, 1:]].mean().item() for words in own)
            text = " ".join(WORDS[word] for word in own[0][0, :12])
            rows.append([name, spread(at_once[name]), spread(apart[name]), share, text])
        with capture_attention(trained["none"][0]) as maps:
            logits_under(trained["none"][0], held_out[:1, :12], MASKS["none"])
    columns = ["causal mask in", "loss at once", "loss one at a time", "lawful words", "text of seed 0"]
    study.table("training under a mask, and writing", columns, rows)
    (masked, *leaky), (masked_apart, *leaky_apart) = at_once.values(), apart.values()
    honest = max(masked + masked_apart)
    study.finding("With the mask, both losses are the law's", best - 0.02 < min(masked) and honest < best + 0.1)
    study.finding("One layer without it has a loss that no honest prediction has", max(map(max, leaky)) < best / 2)
    study.finding("One at a time, it predicts worse than with the mask", min(map(min, leaky_apart)) > 1.5 * honest)

    *bars, image = study.axes(1, 3)
    for axes, values, title in ((bars[0], at_once, "all at once"), (bars[1], apart, "one at a time")):
        mean, low, high = (torch.tensor([f(each) for each in values.values()]) for f in (statistics.mean, min, max))
        axes.bar(masks, mean, yerr=torch.stack([mean - low, high - mean]), capsize=3)
        axes.axhline(best, color="black", linestyle=":")
        axes.set(title=f"loss, {title} (dotted: the law)", xlabel="causal mask in")
    heads, labels = torch.cat([layer[0] for layer in maps]), [WORDS[word] for word in held_out[0, :12]]
    image.imshow(heads[heads.diagonal(1, -2, -1).mean(-1).argmax()], vmin=0, vmax=1)
    image.set(title="no mask: weights of one head", xlabel="key", ylabel="query")
    image.set_xticks(range(12), labels, rotation=90)
    image.set_yticks(range(12), labels)
