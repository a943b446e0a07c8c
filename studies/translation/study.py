"""Number words -> digits by an encoder and a decoder, whose cross-attention is the alignment of the two."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence as pad

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Causal, Graph, Padding
from minigpt.model.variants.similarities import ScaledDot, Similarity, Uniform

N_DIGITS, N_EMBD = 6, 64  # digits of the longest number; width
STEPS, BATCH, LEARNING_RATE = 300, 64, 4e-3

ENGLISH = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"""
GERMAN = """ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn
    siebzehn achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig hundert tausend"""
LANGUAGES = {"English": ENGLISH.split(), "German": GERMAN.split()}
WORDS = ["padding", *LANGUAGES["English"], *LANGUAGES["German"], "und"]
END, START = 10, 11  # target tokens besides the digits


def say(number: int, language: str) -> list[tuple[str, list[int]]]:
    """The words of a number, each with the places of the digits that it says: 0 for ones, 1 for tens."""
    words, rest, ones = LANGUAGES[language], number % 100, number % 10
    thousands = [*say(number // 1000, language), (words[-1], [])] if number >= 1000 else []
    said = [(word, [3 + place for place in places]) for word, places in thousands]
    if number % 1000 >= 100:
        said += [(words[number % 1000 // 100 - 1], [2]), (words[-2], [])]
    if rest < 20:
        return said + [(words[rest - 1], [0, 1] if rest > 9 else [0])] * (rest > 0)
    tens, one = (words[rest // 10 + 17], [1]), (words[ones - 1], [0])
    crossed = ones > 0 and language == "German"  # four and twenty
    return [*said, one, ("und", []), tens] if crossed else [*said, tens, *[one] * (ones > 0)]


def pairs_of(numbers: Iterable[int], languages: Iterable[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers as words (B, S) and digits (B, T), and which word says each digit; -1: none does, a zero or the end."""
    said = [say(number, language) for number, language in zip(numbers, languages, strict=True)]
    target = [torch.tensor([*map(int, str(number)), END]) for number in numbers]
    word = [torch.full_like(digits, -1) for digits in target]
    for of, words in zip(word, said, strict=True):
        for place, at in ((place, at) for at, (_, places) in enumerate(words) for place in places):
            of[-2 - place] = at
    source = pad([torch.tensor([WORDS.index(each) for each, _ in words]) for words in said], True)
    return source, pad(target, True, -100), pad(word, True, -1)  # -100: no loss


class Attention(nn.Module):
    """`attend` with one head and its projections: what each query gathers, and its weights (B, T, S)."""

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity
        self.query, self.key, self.value, self.proj = (nn.Linear(N_EMBD, N_EMBD) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        query, key, value = self.query(query)[:, None], self.key(key)[:, None], self.value(value)[:, None]
        gathered = attend(query, key, value, similarity=self.similarity, graph=graph)[:, 0]
        return self.proj(gathered), attention_weights(query, key, similarity=self.similarity, graph=graph)[:, 0]


class Translator(nn.Module):
    """An encoder and a decoder of one layer; it reads encoded words, plain words or the mean of the encoded words."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads
        self.words, self.digits = nn.Embedding(len(WORDS), N_EMBD), nn.Embedding(START + 1, N_EMBD)
        self.places = nn.Embedding(32, N_EMBD)  # learned positions, of the words and of the digits
        self.encode, self.decode = Attention(ScaledDot()), Attention(ScaledDot())
        self.cross = Attention(Uniform() if reads == "mean" else ScaledDot())
        self.norms = nn.ModuleList(nn.LayerNorm(N_EMBD) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(N_EMBD, 4 * N_EMBD), nn.GELU(), nn.Linear(4 * N_EMBD, N_EMBD))
        self.head = nn.Linear(N_EMBD, END + 1)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, V) logits of the digits, each after the right ones, and (B, T, S) weights of the words."""
        words, real = self.words(source), Padding(source > 0)
        memory = words + self.places.weight[: source.shape[1]]
        memory = self.norms[0](memory + self.encode(memory, memory, memory, real)[0])
        x = self.digits(F.pad(target.clamp(min=0), (1, -1), value=START)) + self.places.weight[: target.shape[1]]
        x = x + self.decode(x, x, x, Causal())[0]
        gathered, weights = self.cross(self.norms[1](x), memory, words if self.reads == "plain words" else memory, real)
        x = x + gathered
        return self.head(self.norms[3](x + self.mlp(self.norms[2](x)))), weights


def train(reads: str, steps: int, n_digits: int, seed: int) -> Translator:
    """Learn numbers of up to `n_digits` digits in both languages; every 13th number is kept for the test."""
    torch.manual_seed(seed)
    below = 10 ** torch.randint(1, n_digits + 1, (steps * BATCH,))  # all lengths equally often
    numbers = (below // 10 + torch.rand(len(below)) * (below - below // 10)).long()
    numbers = torch.where(numbers % 13 == 0, numbers - 1, numbers).clamp(min=1)
    languages = [list(LANGUAGES)[i] for i in torch.randint(2, (len(below),))]
    model = Translator(reads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        source, target, _ = pairs_of(numbers[step::steps].tolist(), languages[step::steps])
        loss = F.cross_entropy(model(source, target)[0].transpose(1, 2), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def judge(model: Translator, n_digits: int, language: str) -> tuple[float, float]:
    """Shares of new numbers translated, and of digits whose largest weight is on the word that says them."""
    numbers = range(10 ** (n_digits - 1) // 13 * 13 + 13, 10**n_digits, 13 * (10**n_digits // 4000 + 1))
    source, target, word = pairs_of(numbers, [language] * len(numbers))
    logits, weights = model(source, target)
    # Greedy text is right exactly if each digit is, after the right ones: no need to generate it.
    right = ((logits.argmax(-1) == target) | (target < 0)).all(1)
    return right.float().mean().item(), (weights.argmax(-1) == word)[word >= 0].float().mean().item()


def run(study: Study) -> None:
    steps, n_digits = (250, 4) if study.quick else (STEPS, N_DIGITS)
    kinds, lengths = ("encoded words", "plain words", "mean"), range(2, n_digits + 1)
    models = {reads: [train(reads, steps, n_digits, seed) for seed in study.seeds] for reads in kinds}
    judged = {  # (seeds, lengths, the two shares)
        (reads, language): torch.tensor([[judge(model, n, language) for n in lengths] for model in models[reads]])
        for reads, language in itertools.product(kinds, LANGUAGES)
    }
    rows = [[*who, *map(spread, shares[:, -1].T)] for who, shares in judged.items()]
    columns = ["decoder reads", "source", "right", "largest weight on the word"]
    study.table(f"numbers of {n_digits} digits", columns, rows)
    encoded, plain, mean = (torch.stack([judged[reads, each] for each in LANGUAGES])[:, :, -1] for reads in kinds)
    study.finding("Plain words: most digits look at their word, 0.7 or more in either order", plain[..., 1].min() > 0.7)
    study.finding("Encoded words: in German, fewer do", encoded[1, :, 1].mean() < plain[1, :, 1].mean() - 0.1)
    study.finding("The mean carries fewer long numbers than encoded words", mean[..., 0].max() < encoded[..., 0].min())
    *maps, right = study.axes(1, 4, width=3.2, height=3.4)
    number, drawn = 324687 % 10**n_digits, (("plain words", "English"), ("plain words", "German"), (kinds[0], "German"))
    for axes, (reads, language) in zip(maps, drawn, strict=True):
        weights = models[reads][0](*pairs_of([number], [language])[:2])[1][0, :n_digits].detach()
        axes.imshow(weights.T, vmin=0, vmax=1)
        axes.set(title=f"{language}, {reads}", xticks=range(n_digits), xticklabels=str(number), xlabel="digit")
        axes.set(yticks=range(weights.shape[1]), yticklabels=[word for word, _ in say(number, language)])
    for reads in kinds:
        shares = torch.stack([judged[reads, language] for language in LANGUAGES])[..., 0].mean(0)  # (seeds, lengths)
        right.errorbar(lengths, shares.mean(0), shares.std(0, correction=0), capsize=3, label=reads)
    right.set(title="numbers right", xlabel="digits", xticks=lengths, ylim=(0, 1.05))
    right.legend()
