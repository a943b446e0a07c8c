"""Pictures of two shapes on a grid -> a sentence, by cross-attention over the patches: soft, or hard on one patch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend, attention_weights
from minigpt.model.variants.graphs import Causal, Full
from minigpt.model.variants.similarities import Hard, ScaledDot, Similarity

GRID, PIXELS, N_EMBD = 4, 8, 48  # patches in a row of the picture, pixels in a row of a patch; width
NOISE = 0.05  # standard deviation, of every pixel; colours are in [0, 1]
STEPS, BATCH, LEARNING_RATE = 450, 64, 3e-3

COLOURS = {"red": (0.84, 0.37, 0.0), "green": (0.0, 0.62, 0.45), "blue": (0.0, 0.45, 0.7), "yellow": (0.94, 0.89, 0.26)}
SHAPES = ("circle", "square", "triangle", "cross")
WORDS = ["a", *COLOURS, *SHAPES, "and"]  # a red circle and a blue square
OBJECT_OF = {1: 0, 2: 0, 5: 1, 6: 1}  # which object each word of the sentence names; "a" and "and" name none


def draw_shapes(shapes: Tensor) -> Tensor:
    """(n,) numbers of shapes -> (n, PIXELS, PIXELS) masks, each of another size and place within its patch."""
    at = torch.linspace(-1, 1, PIXELS)
    size = 0.7 + 0.25 * torch.rand(len(shapes), 1, 1)
    x, y = ((at.view(way) - 0.2 * torch.rand(len(shapes), 1, 1) + 0.1) / size for way in ((1, 1, -1), (1, -1, 1)))
    inside = torch.maximum(x.abs(), y.abs()) < 1
    triangle, cross = inside & (2 * x.abs() < 1 + y), inside & (torch.minimum(x.abs(), y.abs()) < 0.3)
    masks = x**2 + y**2 < 1, inside, triangle, cross
    return torch.stack(masks)[shapes, torch.arange(len(shapes))]


class Pictures:
    """Random pictures with their sentences. One in five pairs of objects is kept for the test."""

    def __init__(self, n: int, *, test: bool = False) -> None:
        first, second = torch.randint(16, (2, 8 * n))  # colour and shape
        wanted = (((first + 3 * second) % 5 == 0) == test) & (first != second)
        kinds = torch.stack([first, second], 1)[wanted][:n]  # (n, 2)
        self.cells = torch.rand(n, GRID**2).argsort(1)[:, :2].sort(1).values  # (n, 2) different ones, in reading order
        self.patches = torch.zeros(n, GRID**2, 3, PIXELS, PIXELS)
        for i in range(2):
            colours = torch.tensor(list(COLOURS.values()))[kinds[:, i] // 4][:, :, None, None]
            self.patches[torch.arange(n), self.cells[:, i]] = draw_shapes(kinds[:, i] % 4)[:, None] * colours
        self.labels = torch.zeros(n, GRID**2, 2, dtype=torch.long)  # colour and shape of each patch, 0 where empty
        self.labels[torch.arange(n)[:, None], self.cells] = 1 + torch.stack([kinds // 4, kinds % 4], -1)
        self.patches += NOISE * torch.randn_like(self.patches)
        named = [word for each in kinds.T for word in (0 * each, 1 + each // 4, 5 + each % 4)]
        self.sentence = torch.stack([*named[:3], torch.full((n,), 9), *named[3:]], 1)  # (n, 7)


class Attention(nn.Module):
    """Queries from x, keys and values from memory, in one head: what x gathers, and its weights (B, T, S)."""

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity
        self.query, self.key, self.value, self.proj = (nn.Linear(N_EMBD, N_EMBD) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, graph: Full | Causal) -> tuple[Tensor, Tensor]:
        query, key, value = self.query(x)[:, None], self.key(memory)[:, None], self.value(memory)[:, None]
        gathered = attend(query, key, value, similarity=self.similarity, graph=graph)[:, 0]
        return self.proj(gathered), attention_weights(query, key, similarity=self.similarity, graph=graph)[:, 0]


class Captioner(nn.Module):
    """What the detector saw, and a decoder layer whose cross-attention reads it."""

    def __init__(self, detector: nn.Module, similarity: Similarity) -> None:
        super().__init__()
        self.detector, self.see = detector.requires_grad_(False), nn.Linear(10, N_EMBD)
        self.cells, self.places = nn.Embedding(GRID**2, N_EMBD), nn.Embedding(7, N_EMBD)
        nn.init.normal_(self.see.weight)  # as large as an embedding
        self.words = nn.Embedding(len(WORDS) + 1, N_EMBD)
        self.decode, self.look = Attention(ScaledDot()), Attention(similarity)
        self.norms = nn.ModuleList(nn.LayerNorm(N_EMBD) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(N_EMBD, 4 * N_EMBD), nn.GELU(), nn.Linear(4 * N_EMBD, N_EMBD))
        self.head = nn.Linear(N_EMBD, len(WORDS))

    def forward(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """(B, T, V) logits of the words, and (B, T, S) weights of the patches."""
        memory = self.see(self.detector(pictures.patches).exp().flatten(2)) + self.cells.weight
        # Teacher forcing: the words before each word, after a start token.
        x = self.words(F.pad(pictures.sentence[:, :-1], (1, 0), value=len(WORDS))) + self.places.weight
        normed = self.norms[0](x)
        x = x + self.decode(normed, normed, Causal())[0]
        gathered, weights = self.look(self.norms[1](x), memory, Full())
        x = x + gathered
        return self.head(self.norms[3](x + self.mlp(self.norms[2](x)))), weights


def fit(model: nn.Module, loss_of: Callable[[Pictures], Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], LEARNING_RATE)
    for _ in range(steps):
        loss = loss_of(Pictures(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(similarity: Similarity, steps: int, seed: int) -> Captioner:
    torch.manual_seed(seed)
    # Probabilities of each patch's colour and shape. It stands for the network of Xu et al., trained on ImageNet.
    layers = nn.Linear(3 * PIXELS**2, 2 * N_EMBD), nn.GELU(), nn.Linear(2 * N_EMBD, 10), nn.Unflatten(-1, (2, 5))
    detector = nn.Sequential(nn.Flatten(2), *layers, nn.LogSoftmax(-1))
    fit(detector, lambda seen: F.nll_loss(detector(seen.patches).flatten(0, 2), seen.labels.flatten()), steps // 4)
    model = Captioner(detector, similarity)
    fit(model, lambda seen: F.cross_entropy(model(seen)[0].transpose(1, 2), seen.sentence), steps)
    return model.eval()


@torch.no_grad()
def judge(model: Captioner) -> tuple[float, float]:
    """Share of sentences without a mistake, and weight on the patch of the object that a word names."""
    pictures = Pictures(1000, test=True)
    logits, weights = model(pictures)
    # Greedy text is right exactly if each word is, after the right ones: no need to generate it.
    right = (logits.argmax(-1) == pictures.sentence).all(1).float().mean().item()
    named = [weights[torch.arange(1000), word, pictures.cells[:, which]] for word, which in OBJECT_OF.items()]
    return right, torch.stack(named).mean().item()


def run(study: Study) -> None:
    steps = 300 if study.quick else STEPS
    kinds = {"soft": ScaledDot(), "hard": Hard()} | ({} if study.quick else {"hard, sampled": Hard(sampled=True)})
    models = {name: [train(each.train(), steps, seed) for seed in study.seeds] for name, each in kinds.items()}
    judged = {name: list(zip(*map(judge, each), strict=True)) for name, each in models.items()}
    rows = [[name, *map(spread, each)] for name, each in judged.items()]
    study.table("new pairs of objects", ["attention", "sentences right", "weight on the object named"], rows)
    for name in ("soft", "hard"):
        study.finding(f"{name}: a word's weight lies on the object it names, 0.8 or more", min(judged[name][1]) > 0.8)
        study.finding(f"{name}: most sentences on new pairs are right", min(judged[name][0]) > 0.5)
    grid = study.axes(2, 7, width=1.6, height=1.8)
    torch.manual_seed(3)
    picture = Pictures(1, test=True)
    image = picture.patches[0].unflatten(0, (GRID, GRID)).permute(0, 3, 1, 4, 2).reshape(GRID * PIXELS, -1, 3)
    for row, name in zip(grid, ("soft", "hard"), strict=True):
        maps = models[name][0](picture)[1][0].unflatten(-1, (GRID, GRID)).detach()  # (T, rows, columns)
        row[0].imshow(image.clamp(0, 1))
        row[0].set(ylabel=name, title="picture", xticks=[], yticks=[])
        for axes, word in zip(row[1:6], (1, 2, 3, 5, 6), strict=True):
            axes.imshow(image.clamp(0, 1).mean(-1), cmap="gray", extent=(0, GRID, GRID, 0))
            axes.imshow(maps[word], vmin=0, vmax=1, alpha=0.7, extent=(0, GRID, GRID, 0))
            axes.set(title=WORDS[int(picture.sentence[0, word])], xticks=[], yticks=[])
    for axes, what, title in zip(grid[:, 6], (0, 1), ("sentences right", "weight on it"), strict=True):
        shares = torch.tensor([each[what] for each in judged.values()])
        axes.bar(["soft", "hard", "drawn"][: len(shares)], shares.mean(1), yerr=shares.std(1, correction=0), capsize=3)
        axes.set(title=title, ylim=(0, 1.05))
