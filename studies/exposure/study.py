"""Teacher forcing trains on right prefixes only. In writing, the model reads its own mistakes as well."""

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.lab.study import Study, spread
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT
from minigpt.training.loss import next_token_loss

LETTERS, T, PROMPT, BATCH, STEPS = 16, 32, 8, 16, 250
N_POEMS = 4
SHARE = {"scheduled sampling": 0.5, "random letters": 0.25}  # of the letters read in training that are replaced


class Chain:
    """Each letter is followed by one of four. The last letter says all, so a mistake leaves no trace."""

    def __init__(self) -> None:
        followers = torch.stack([torch.randperm(LETTERS)[:4] for _ in range(LETTERS)])
        self.may_follow = torch.zeros(LETTERS, LETTERS).scatter(1, followers, 1.0)

    def texts(self, n: int) -> Tensor:
        rows = [torch.randint(LETTERS, (n,))]
        while len(rows) <= T:
            rows.append(self.may_follow[rows[-1]].multinomial(1)[:, 0])
        return torch.stack(rows, dim=1)

    def mistakes(self, before: Tensor, letters: Tensor, right: Tensor) -> Tensor:
        """Whether each of (n, t) letters may not follow the one before it."""
        return 1 - self.may_follow[before, letters]


class Poems:
    """A few texts to know by heart. Which of them, and where in it, must be read from the prefix."""

    def __init__(self) -> None:
        self.poems = torch.randint(LETTERS, (N_POEMS, T + 1))

    def texts(self, n: int) -> Tensor:
        return self.poems[torch.randint(N_POEMS, (n,))]

    def mistakes(self, before: Tensor, letters: Tensor, right: Tensor) -> Tensor:
        """Whether each of (n, t) letters differs from the poem's."""
        return (letters != right).float()


def draw(logits: Tensor) -> Tensor:
    """(..., V) logits -> (...) letters."""
    return torch.distributions.Categorical(logits=logits).sample()


def train(text: Chain | Poems, way: str, steps: int) -> GPT:
    """Minimise the loss of the right next letter, after right letters or after some that were replaced."""
    model = GPT(GPTConfig(vocab_size=LETTERS, context_length=T, n_layer=2, n_head=2, n_embd=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / steps))
    for step in range(steps):
        words = text.texts(BATCH)
        read = words[:, :T].clone()
        if way == "scheduled sampling":  # in two passes, as Mihaylova and Martins 2019; the share grows
            with torch.no_grad():
                other = draw(model(read))[:, :-1]
        else:
            other = torch.randint(LETTERS, (BATCH, T - 1))
        is_other = torch.rand(BATCH, T - 1) < SHARE.get(way, 0.0) * min(1.0, 2 * step / steps)
        read[:, 1:] = torch.where(is_other, other, read[:, 1:])
        optimizer.zero_grad()
        next_token_loss(model(read), words[:, 1:]).backward()
        optimizer.step()
        schedule.step()
    return model


def write(model: GPT, prompt: Tensor) -> Tensor:
    """(n, T + 1) letters: the prompt, and then each drawn from what the model predicts after its own."""
    cache, letters, new = KVCache(model.config, len(prompt), T), prompt, prompt
    while letters.shape[1] <= T:
        logits = model(new, cache=cache)[:, -1]
        cache.position += new.shape[1]
        new = draw(logits)[:, None]
        letters = torch.cat([letters, new], dim=1)
    return letters


@torch.no_grad()
def mistakes(text: Chain | Poems, model: GPT, n: int) -> dict[str, Tensor]:
    """Share of wrong letters in n texts by position from PROMPT on, after right prefixes and after its own."""
    words = text.texts(n)
    slipped = words[:, :PROMPT].clone()
    slipped[:, -1] = (slipped[:, -1] + torch.randint(1, LETTERS, (len(words),))) % LETTERS
    guesses, right = draw(model(words[:, :T]))[:, PROMPT - 1 :], words[:, PROMPT:]
    found = {"right prefix": text.mistakes(words[:, PROMPT - 1 : T], guesses, right)}
    for name, prompt in (("own text", words[:, :PROMPT]), ("after a slip", slipped)):
        own = write(model, prompt)
        found[name] = text.mistakes(own[:, PROMPT - 1 : T], own[:, PROMPT:], right)
    return {name: each.mean(dim=0) for name, each in found.items()}


def run(study: Study) -> None:
    ways = ("right prefixes", *SHARE)[: 2 if study.quick else 3]
    curves: dict[str, dict[str, list[dict[str, Tensor]]]] = {}
    for name, kind in (("chain", Chain), ("poems", Poems)):
        curves[name] = {way: [] for way in ways}
        for way in ways:
            for seed in study.seeds:
                torch.manual_seed(seed)
                text = kind()
                model = train(text, way, STEPS // (1 + study.quick))
                curves[name][way].append(mistakes(text, model, 128 if study.quick else 512))

    # In the second half of what it writes: how mistakes grow, or fade after a slip.
    late = {
        name: {
            way: {after: [each[after][T // 2 - PROMPT // 2 :].mean().item() for each in found] for after in found[0]}
            for way, found in by_way.items()
        }
        for name, by_way in curves.items()
    }
    for name, by_way in late.items():
        rows = [[way, *(spread(each) for each in by_after.values())] for way, by_after in by_way.items()]
        columns = ["trained on", "after right prefixes", "in its own text", "in its own text after a slip"]
        study.table(f"{name}: share of mistakes", columns, rows)
    chain, poems = late["chain"], late["poems"]
    forced = poems["right prefixes"]
    right, own, slip = (torch.tensor(each) for each in chain["right prefixes"].values())
    drift = (torch.stack([own, slip]) - right).abs().max().item()
    study.finding("Where the last letter says all, it writes as well as it predicts, also after a slip", drift < 0.02)
    grows = min(forced["own text"]) > 2 * max(forced["right prefix"])
    study.finding("Where the place must be remembered, mistakes pile up in its own text", grows)
    study.finding("One slip, and most of the rest of the poem is wrong", min(forced["after a slip"]) > 0.5)
    if not study.quick:
        sampled, noisy = (poems[way]["after a slip"] for way in SHARE)
        repaired = min(sampled) > 0.45 and max(noisy) < 0.4
        study.finding("Scheduled sampling does not repair that, random letters do", repaired)
    spoilt = min(min(chain[way]["own text"]) for way in ways[1:]) - max(chain["right prefixes"]["own text"])
    study.finding("What teaches to doubt the prefix spoils the chain", spoilt > 0.05)

    for axes, (name, by_way) in zip(study.axes(1, 2), curves.items(), strict=True):
        for way, found in by_way.items():
            slip, own = (torch.stack([one[after] for one in found]) for after in ("after a slip", "own text"))
            (line,) = axes.plot(range(PROMPT, T + 1), slip.mean(0), label=way)  # (seeds, positions)
            for each, style in ((slip, "-"), (own, "--")):
                axes.plot(range(PROMPT, T + 1), each.mean(0), style, color=line.get_color())
                axes.fill_between(range(PROMPT, T + 1), each.amin(0), each.amax(0), color=line.get_color(), alpha=0.2)
        axes.set(title=f"{name} (dashed: without a slip)", xlabel="position", ylabel="share of mistakes", ylim=(0, 1))
        if name == "chain":
            axes.legend(title="trained on", frameon=False)
