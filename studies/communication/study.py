"""Attention sends messages along the edges of a directed graph, and the graph's paths decide what a node can know."""

from collections.abc import Callable

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Adjacency, Causal, Full, Graph, Window
from minigpt.model.variants.similarities import ScaledDot

C = 16  # width
CLUB_STEPS, CLUB_ROUNDS = 100, 2  # steps of training; how often messages pass
NEWS_STEPS, N_NODES, N_MESSAGES = 250, 6, 8
ROUNDS = N_NODES - 1
MESSAGE = torch.arange(N_MESSAGES).repeat(N_NODES)  # (B,): every message at every source
SOURCE = torch.arange(N_NODES).repeat_interleave(N_MESSAGES)
NEWS = F.one_hot(SOURCE, N_NODES) * (MESSAGE + 1)[:, None]  # (B, T) tokens: the message at its source, 0 elsewhere
RING = torch.eye(N_NODES, dtype=torch.bool) | torch.eye(N_NODES, dtype=torch.bool).roll(1, 0)  # itself, and the last
GRAPHS: dict[str, Graph] = {"ring": Adjacency(RING), "ring, cut": Adjacency(RING.tril())}
GRAPHS |= {"causal": Causal(), "window": Window(2), "full": Full()}


class Head(nn.Module):
    """One attention head: each node gets a mixture of its in-neighbours' messages."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, C, bias=False) for _ in range(3))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        query, key, value = (project(x)[:, None] for project in (self.query, self.key, self.value))
        return attend(query, key, value, similarity=ScaledDot(), graph=graph)[:, 0]


class Club(nn.Module):
    """Each member starts with a vector of its own, reads its friends', and takes a side."""

    def __init__(self, n_members: int = 34) -> None:
        super().__init__()
        self.embedding, self.head, self.side = nn.Parameter(torch.randn(1, n_members, C)), Head(), nn.Linear(C, 2)

    def forward(self, graph: Graph) -> Tensor:
        x = self.embedding
        for _ in range(CLUB_ROUNDS):
            x = self.head(x, graph)
        return self.side(x[0])  # (members, 2) logits


class Relay(nn.Module):
    """One node has news, and each tells it after each round."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head, self.tell = nn.Embedding(N_MESSAGES + 1, C), Head(), nn.Linear(C, N_MESSAGES)

    def forward(self, graph: Graph) -> Tensor:
        x, told = self.embedding(NEWS), list[Tensor]()
        for _ in range(ROUNDS):
            x = x + self.head(F.rms_norm(x, (C,)), graph)
            told.append(self.tell(F.rms_norm(x, (C,))))
        return torch.stack(told)  # (rounds, B, T, messages) logits


def fit(model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def split_club(study: Study, seed: int) -> tuple[dict[str, float], dict[str, float], Tensor]:
    """Share of the other 32 on the right side, by graph: trained on it, and with friends' weights; the sides found."""
    club = nx.karate_club_graph()
    order = torch.randperm(34, generator=torch.manual_seed(seed))  # else a member's number would tell of its side
    truth = torch.tensor([club.nodes[int(member)]["club"] == "Officer" for member in order]).long()
    known = (order == 0) | (order == 33)  # the instructor and the officer, who fell out
    rewired = nx.double_edge_swap(club.copy(), nswap=200, max_tries=10_000, seed=seed)  # as many friends for each
    own, moved, steps = dict[str, float](), dict[str, float](), 50 if study.quick else CLUB_STEPS
    graphs = {"friends": club, "rewired": rewired} | ({} if study.quick else {"window": Window(5), "full": Full()})
    for name, graph in graphs.items():
        if isinstance(graph, nx.Graph):
            matrix = torch.tensor(nx.to_numpy_array(graph, weight=None)) > 0
            graph = Adjacency((matrix | torch.eye(34, dtype=torch.bool))[order][:, order])
        torch.manual_seed(seed)
        model = Club()
        fit(model, lambda m=model, g=graph: F.cross_entropy(m(g)[known], truth[known]), steps, 0.01)
        if name == "friends":
            of_friends, sides = model, model(graph).softmax(-1)[order.argsort(), 1].detach()
        for right, each in ((own, model), (moved, of_friends)):
            right[name] = float((each(graph).argmax(-1) == truth)[~known].float().mean())
    return own, moved, sides


def train_relay(study: Study, graph: Graph, seed: int) -> Relay:
    torch.manual_seed(seed)
    model, target = Relay(), MESSAGE[:, None].expand(ROUNDS, -1, N_NODES).flatten()
    steps = 80 if study.quick else NEWS_STEPS
    fit(model, lambda: F.cross_entropy(model(graph).flatten(0, 2), target), steps, 0.02)
    return model


def look_at(models: list[Relay], graph: Graph) -> tuple[Tensor, Tensor]:
    """(models, rounds) share of right answers; (models, rounds, S, T) whether the news at s changes what t tells."""
    told = torch.stack([model(graph).detach() for model in models])
    right = (told.argmax(-1) == MESSAGE[:, None]).float().mean((2, 3))
    told = told.unflatten(2, (N_NODES, N_MESSAGES))
    return right, ((told - told[:, :, :, :1]).abs() > 1e-5).any(-1).any(3)


def paths(graph: Graph) -> Tensor:
    """(rounds, S, T): whether a path of at most so many edges leads from s to t."""
    edges = graph.mask(range(N_NODES), range(N_NODES))[0, 0]  # a row is a query, and edges lead from key to query
    lengths = dict(nx.all_pairs_shortest_path_length(nx.DiGraph(edges.T.nonzero().tolist())))
    far = torch.tensor([[lengths[s].get(t, N_NODES) for t in range(N_NODES)] for s in range(N_NODES)])
    return far <= torch.arange(1, ROUNDS + 1)[:, None, None]


def run(study: Study) -> None:
    clubs = [split_club(study, seed) for seed in study.seeds]
    rows = [[name, *(spread(club[i][name] for club in clubs) for i in (0, 1))] for name in clubs[0][0]]
    study.table("share of the club on the right side", ["graph", "trained on it", "weights trained on friends"], rows)
    ahead = [own["friends"] - max(own[name] for name in own if name != "friends") for own, *_ in clubs]
    study.finding("Sides spread along the friendships, and along no other graph", min(ahead) > 0.1)

    left, end = study.axes(1, 2)
    rows, of_ring = [], [train_relay(study, GRAPHS["ring"], seed) for seed in study.seeds]
    for name in ("ring", "ring, cut") if study.quick else GRAPHS:
        graph, reach = GRAPHS[name], paths(GRAPHS[name])
        models = of_ring if name == "ring" else [train_relay(study, graph, seed) for seed in study.seeds]
        (right, changes), moved = look_at(models, graph), look_at(of_ring, graph)[0]
        most = reach.float().mean((1, 2)) * (1 - 1 / N_MESSAGES) + 1 / N_MESSAGES  # who cannot know guesses
        rows.append([name, float(most[-1]), spread(right[:, -1].tolist()), spread(moved[:, -1].tolist())])
        study.finding(f"{name}: news changes what a node tells exactly where paths have led", (changes == reach).all())
        study.finding(f"{name}: {most[-1]:.2f} tell it, within 0.1", (right[:, -1] - most[-1]).abs().max() < 0.1)
        study.finding(f"{name}: so do they by the ring's weights", (moved - most).abs().max() < 0.1)
        end.errorbar(range(1, ROUNDS + 1), right.mean(0), yerr=right.std(0, correction=0), marker="o", label=name)
    columns = ["graph", "most by its paths", "trained on it", "weights trained on the ring"]
    study.table(f"share of nodes that tell the news after {ROUNDS} rounds", columns, rows)
    end.set(title="the news", xlabel="rounds", ylabel="share of nodes that tell it", ylim=(0, 1.05))
    end.legend()
    club, sides = nx.karate_club_graph(), torch.stack([found for *_, found in clubs]).mean(0)
    outlines = ["black" if club.nodes[member]["club"] == "Officer" else "silver" for member in club]
    style = {"cmap": "cividis", "vmin": 0, "vmax": 1, "edgecolors": outlines, "node_size": 90, "with_labels": False}
    nx.draw_networkx(club, nx.spring_layout(club, seed=3), ax=left, node_color=sides, edge_color="silver", **style)
    left.set(title="the club: side found; officer's outlined")
