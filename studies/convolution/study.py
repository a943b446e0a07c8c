"""A convolution mixes tokens by their offsets alone. Heads can do that; what they learn also depends on the content."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.lab.study import Study, spread
from minigpt.model.attention import rotate
from minigpt.model.gpt import GPT
from minigpt.model.tables import rotary_table
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Causal
from minigpt.model.variants.similarities import ScaledDot

TAPS, WIDTH, T, VOCABULARY, N_TEXTS = 4, 32, 32, 16, (32, 256, 2048)
N_KEYS, STEPS, BATCH, RATE = 8, 240, 32, 1e-2  # the look-up has as many values as keys
QKV_BIAS = True  # a query and a key without content, which rotary positions turn into an offset
LOCAL, LOOKUP = ("convolution", "window", "attention"), ("convolution", "wide convolution", "attention")


def hand_built_error(temperature: float, seed: int) -> float:
    """Largest difference between a random convolution and one head for each of its taps, with rotary positions."""
    torch.manual_seed(seed)
    x, kernel = torch.randn(1, WIDTH, T), torch.randn(WIDTH, WIDTH, TAPS)
    table, constant = torch.from_numpy(rotary_table(T + TAPS, 16, base=10_000.0)), torch.ones(1, 1, T, 16)
    query = rotate(constant, table[:, :T]).expand(1, TAPS, T, 16)
    # A key turned too far by d tokens fits the query d tokens later. The last tap of a kernel is the token itself.
    key = torch.cat([rotate(constant, table[:, d : d + T]) for d in reversed(range(TAPS))], dim=1)
    value = torch.einsum("oik,bit->bkto", kernel, x)  # (B, H, T, C): a head's value and output matrices in one
    heads = attend(query, key, value, similarity=ScaledDot(temperature), graph=Causal()).sum(1).mT
    # A softmax has to attend to something: before the first token, the first is nearest. So the padding repeats it.
    return float((heads - F.conv1d(F.pad(x, (TAPS - 1, 0), mode="replicate"), kernel)).abs().max())


class Convolution(nn.Conv1d):
    """A causal convolution, in the place of a block's attention. With 4 taps it has as many weights."""

    def forward(self, x: Tensor, *unused: object) -> Tensor:
        return super().forward(F.pad(x.mT, (self.kernel_size[0] - 1, 0))).mT


def make_model(kind: str, vocab_size: int) -> GPT:
    window = TAPS if kind == "window" else None
    model = GPT(GPTConfig(vocab_size, T, 1, TAPS, n_embd=WIDTH, window=window, qkv_bias=QKV_BIAS))
    if "convolution" in kind:
        model.blocks[0].attn = Convolution(WIDTH, WIDTH, T if "wide" in kind else TAPS)
        nn.init.normal_(model.blocks[0].attn.weight, std=0.02)  # as all layers of GPT
    return model


def local_texts(n: int, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, T) tokens; (n, T - TAPS + 1, V) the next ones, and their probabilities: a softmax of a convolution."""
    tokens, chances = torch.randint(VOCABULARY, (n, TAPS)), []
    for _ in range(T - TAPS + 1):
        chances.append(torch.stack([source[k, tokens[:, -1 - k]] for k in range(TAPS)]).sum(0).softmax(-1))
        tokens = torch.cat([tokens, chances[-1].multinomial(1)], 1)
    return tokens[:, :-1], F.one_hot(tokens[:, TAPS:], VOCABULARY).float(), torch.stack(chances, 1)


def lookup_texts(n: int) -> tuple[Tensor, Tensor]:
    """(n, T) tokens, each a key with a value, the last a key alone; (n, 1, V) the value that stands with that key."""
    keys = torch.stack([torch.randperm(T - 1) % N_KEYS for _ in range(n)])
    table = torch.randint(N_KEYS, (n, N_KEYS))  # a key has the same value wherever it stands in a text
    asked = torch.randint(N_KEYS, (n, 1))
    tokens = torch.cat([keys * N_KEYS + table.gather(1, keys), N_KEYS**2 + asked], 1)
    return tokens, F.one_hot(table.gather(1, asked), N_KEYS**2 + N_KEYS).float()


def excess(model: GPT, tokens: Tensor, chances: Tensor) -> Tensor:
    """Nats per token above the entropy of the source (Kullback-Leibler divergence), of the last tokens."""
    return F.kl_div(model(tokens)[:, -chances.shape[1] :].log_softmax(-1), chances, reduction="none").sum(-1).mean()


def train(model: GPT, texts: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], steps: int) -> float:
    """Lowest excess on held-out texts: every model is stopped before it learns its texts by heart."""
    optimizer, best = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1), float("inf")
    for step in range(1, steps + 1):
        rows = torch.randint(len(texts[0]), (BATCH,))
        optimizer.zero_grad()
        excess(model, texts[0][rows], texts[1][rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % (steps // 8) == 0:
            best = min(best, excess(model, *held_out).item())
    return best


@torch.no_grad()
def as_convolution(model: GPT, tokens: Tensor, chances: Tensor) -> tuple[Tensor, float, float]:
    """(H, T) mean weight at each offset; the excess, and that with these weights for every text: a convolution."""
    attn, seen = model.blocks[0].attn, []
    attn.hooks.append(lambda query, key, value, spec: seen.append(attention_weights(query, key, **spec)))
    before = float(excess(model, tokens, chances))
    by_offset = torch.stack([seen[0].diagonal(-d, 2, 3).mean((0, 2)) for d in range(T)], 1)
    offsets = torch.arange(T)[:, None] - torch.arange(T)
    pattern = by_offset[:, offsets.clamp(min=0)].tril()
    attn.hooks[:] = [lambda query, key, value, spec: pattern / pattern.sum(-1, keepdim=True) @ value]
    return by_offset, before, float(excess(model, tokens, chances))


def run(study: Study) -> None:
    rows = [[t, spread(hand_built_error(t, seed) for seed in study.seeds)] for t in (1.0, 0.1, 0.01)]
    study.table("hand-built heads and a convolution", ["temperature", "largest difference"], rows)
    study.finding("One head a tap is a convolution", max(hand_built_error(0.01, seed) for seed in study.seeds) < 1e-3)
    steps, sizes, kinds = (STEPS // 2, N_TEXTS[:1], LOCAL[::2]) if study.quick else (STEPS, N_TEXTS, LOCAL)
    local = {(kind, n): list[float]() for n in sizes for kind in kinds}
    lookup = {kind: list[float]() for kind in (LOOKUP[::2] if study.quick else LOOKUP)}
    heads: dict[str, list[tuple[Tensor, float, float]]] = {"local": [], "look-up": []}
    for seed in study.seeds:
        torch.manual_seed(seed)
        source = torch.randn(TAPS, VOCABULARY, VOCABULARY)
        (tokens, following, _), (test, _, chances) = local_texts(max(sizes), source), local_texts(256, source)
        for (kind, n), each in local.items():
            model = make_model(kind, VOCABULARY)
            each.append(train(model, (tokens[:n], following[:n]), (test, chances), steps))
        heads["local"].append(as_convolution(model, test, chances))  # the last: attention, with the most texts
        texts, held_out = lookup_texts(2048), lookup_texts(256)
        for kind, each in lookup.items():
            model = make_model(kind, N_KEYS**2 + N_KEYS)
            each.append(train(model, texts, held_out, steps))
        heads["look-up"].append(as_convolution(model, *held_out))
    rows = [[kind, *(spread(local[kind, n]) for n in sizes)] for kind in kinds]
    study.table("a convolution to learn: excess in nats by number of texts", ["model", *map(str, sizes)], rows)
    study.table("look-up: excess in nats", ["model", "excess"], [[k, spread(each)] for k, each in lookup.items()])
    frozen = torch.tensor([[e[i] for e in each] for each in heads.values() for i in (1, 2)])
    rows = [[task, spread(a), spread(b)] for task, a, b in zip(heads, frozen[::2], frozen[1::2], strict=True)]
    study.table("trained heads: excess in nats", ["task", "as trained", "as a convolution"], rows)
    few, many = ([local[kind, n] for kind in LOCAL[::2]] for n in (sizes[0], sizes[-1]))
    study.finding(f"From {sizes[0]} texts a convolution learns more, by 0.2 nats", max(few[0]) + 0.2 < min(few[1]))
    behind = min(lookup["convolution"]) - max(lookup["attention"])
    study.finding("At the look-up a convolution stays 0.5 nats behind attention", behind > 0.5)
    if not study.quick:
        study.finding(f"From {sizes[-1]} texts attention is within 0.15 nats", max(many[1]) < min(many[0]) + 0.15)
        study.finding("As a convolution, its heads lose 0.3 nats at most", (frozen[1] - frozen[0]).max() < 0.3)
        study.finding("As one, heads that look up lose more than 1 nat", (frozen[3] - frozen[2]).min() > 1)
    left, middle, right = study.axes(1, 3)
    for kind in kinds:
        values = torch.tensor([local[kind, n] for n in sizes])
        ranges = torch.stack([values.mean(1) - values.amin(1), values.amax(1) - values.mean(1)])
        left.errorbar(sizes, values.mean(1), ranges, label=kind, capsize=3)
    left.set(xscale="log", yscale="log", title="a convolution to learn", xlabel="texts", ylabel="excess (nats)")
    left.legend(frameon=False)
    middle.imshow(heads["local"][0][0][:, :8], vmin=0, vmax=1, aspect="auto")
    middle.set(title="mean weight of trained heads", xlabel="tokens back", ylabel="head", yticks=range(TAPS))
    for values, label, at in ((frozen[::2], "as trained", -0.2), (frozen[1::2], "as a convolution", 0.2)):
        ranges = torch.stack([values.mean(1) - values.amin(1), values.amax(1) - values.mean(1)])
        right.bar([at, 1 + at], values.mean(1), 0.4, yerr=ranges, capsize=3, label=label)
    right.set(title="trained heads", ylabel="excess (nats)", xticks=[0, 1], xticklabels=heads)
    right.legend(frameon=False)
