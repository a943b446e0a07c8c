"""A Hopfield network goes down an energy to the pattern nearest to its query. One step of it is attention."""

import csv
import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import minigpt
from minigpt.lab.study import Study, spread
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Full
from minigpt.model.variants.similarities import Hopfield

FLIPPED, LETTER_BETAS, FILM = 0.1, (0.15, 0.3, 1.0), (0, 1, 2, 4, 8)  # share of a letter's pixels; steps shown
MEMORIES, BETAS = (5, 50, 500, 5000), (0.03, 0.125, 0.25, 0.5, 1.0)  # random patterns of 64 signs; 1/sqrt(64) = 0.125
MAGNET = (0.5, 0.8, 1.2, 1.5, 2.0, 3.0)  # beta times the number of spins
UPDATES, MAX_STEPS = (1, 2, 4), 150  # of the trained model's queries; optimizer steps
LETTERS = (  # A to Z: 5 columns of 7 pixels, the top one the lowest bit
    "7E1111117E7F494949363E414141227F4141221C7F494949417F090909013E4149497A7F0808087F00417F410020403F01007F08142241"
    "7F404040407F020C027F7F0408107F3E4141413E7F090909063E4151215E7F09192946464949493101017F01013F4040403F1F2040201F"
    "3F4038403F631408146307087008076151494543"
)


def letters() -> Tensor:
    """(26, 35) pixels of -1 and 1."""
    columns = torch.tensor(list(bytes.fromhex(LETTERS))).view(26, 5, 1)
    return (columns >> torch.arange(7) & 1).mT.reshape(26, 35).double() * 2 - 1


def retrieve(query: Tensor, patterns: Tensor, beta: float, steps: int = 1) -> Tensor:
    """xi <- X^T softmax(beta X xi), `steps` times, for each row xi of a query (T, D); X (S, D) are the patterns.

    Equation 3 of Ramsauer et al. 2021 (https://arxiv.org/abs/2008.02217): keys and values are both the patterns.
    """
    q, k = query[None, None], patterns[None, None]
    return attend(q, k, k, similarity=Hopfield(beta, steps), graph=Full())[0, 0]


def hopfield_energy(query: Tensor, patterns: Tensor, beta: float) -> Tensor:
    """(T,) energies of (T, D) queries, at least 0: equation 2 of Ramsauer et al. 2021. The gradient: xi - retrieve(xi).

    E(xi) = -log(sum_s exp(beta x_s·xi)) / beta + |xi|^2 / 2 + log(S) / beta + max_s |x_s|^2 / 2
    """
    log_mean_exp = torch.logsumexp(beta * query @ patterns.T, dim=-1) - np.log(len(patterns))
    return (query.square().sum(-1) + patterns.square().sum(-1).max()) / 2 - log_mean_exp / beta


def spins(query: Tensor, patterns: Tensor, sweeps: int = 5) -> Tensor:
    """Hopfield's network of 1982: Ising spins with couplings J = X^T X, each in turn set to the sign of its field."""
    couplings, state = (patterns.T @ patterns).fill_diagonal_(0.0), query.clone()
    for i in list(range(query.shape[1])) * sweeps:
        field = state @ couplings[i]
        state[:, i] = torch.where(field == 0, state[:, i], field.sign())
    return state


def random_patterns(S: int, D: int, seed: int = 0) -> Tensor:
    """(S, D) patterns of -1 and 1, float64."""
    return 2.0 * torch.randint(2, (S, D), generator=torch.Generator().manual_seed(seed)).double() - 1


def corrupted(patterns: Tensor, seed: int) -> Tensor:
    """The patterns with a share of FLIPPED signs, drawn for each entry."""
    draws = torch.rand(patterns.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(draws < FLIPPED, -patterns, patterns)


def last_loss(study: Study, folder: str, updates: int, seed: int) -> float:
    """Validation loss of a run of minigpt whose queries are updated several times."""
    settings: Any = {"max_steps": MAX_STEPS // (3 if study.quick else 1), "seed": seed, "data.dir": f"{folder}/data"}
    settings |= {"hopfield_steps": updates, "runs_dir": f"{folder}/{updates}-{seed}"}
    run = minigpt.train(recipe=study.folder / "recipe.yaml", **settings)
    rows = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    return [float(row["val/loss"]) for row in rows if row["val/loss"]][-1]


def plot(axes: Any, x: Any, values: Any, title: str, xlabel: str, label: str) -> None:
    """A line of means over seeds, the last axis, with the range of the seeds."""
    axes.errorbar(x, values.mean(-1), yerr=np.ptp(values, axis=-1) / 2, capsize=3, marker=".", label=label)
    axes.set(title=title, xlabel=xlabel)
    axes.legend(frameon=False, fontsize="x-small")


def run(study: Study) -> None:
    (frames, fall, share), (capacity, ising, trained) = study.axes(2, 3)
    patterns, seeds, steps = letters(), study.seeds, range(FILM[-1] + 1)
    # The letters: the energy by step, and the share of letters whose pixels all have the right sign.
    energies, right = np.empty((2, len(LETTER_BETAS), len(steps), len(seeds), 26))
    for i, n, j in np.ndindex(energies.shape[:3]):
        given, beta = corrupted(patterns, seeds[j]), LETTER_BETAS[i]
        state = retrieve(given, patterns, beta, n) if n else given
        energies[i, n, j], right[i, n, j] = hopfield_energy(state, patterns, beta), (state.sign() == patterns).all(-1)
    restored, given = right.mean(-1), corrupted(patterns, 0).requires_grad_()
    (slope,) = torch.autograd.grad(hopfield_energy(given, patterns, 0.3).sum(), given)
    gap = float((given - slope - retrieve(given, patterns, 0.3)).detach().abs().max())
    study.finding("A step of attention is a step down the gradient of the energy, at rate 1", gap < 1e-9)
    study.finding("No step raises the energy", np.diff(energies, axis=1).max() < 1e-9)
    lost, kept = restored[0, -1].max() < 0.1, restored[-1, -1].min() > 0.85
    study.finding("Eight steps lose all letters at beta 0.15, and keep more than 0.85 of them at beta 1", lost and kept)
    rows = [[f"{b:g}", *(spread(each[n]) for n in FILM)] for b, each in zip(LETTER_BETAS, restored, strict=True)]
    study.table(f"share of 26 letters restored, {FLIPPED:g} flipped", ["beta", *(f"{n} steps" for n in FILM)], rows)

    # Capacity: random patterns from their first halves; squared error after one step and after eight.
    errors = np.empty((2, len(MEMORIES), len(BETAS) + 1, len(seeds)))
    for i, k in np.ndindex(len(MEMORIES), len(seeds)):
        memory = random_patterns(MEMORIES[i], 64, seeds[k])
        asked, half = memory[:100], memory[:100] * (torch.arange(64) < 32)
        for n, step in enumerate((1, 8)):
            found = [retrieve(half, memory, beta, step) for beta in BETAS] + [spins(half, memory, step)]
            errors[n, i, :, k] = [F.mse_loss(each, asked).item() for each in found]
    columns = ["patterns", *(f"beta {beta:g}" for beta in BETAS), "1982"]
    for name, each in zip(("one step", "eight steps"), errors.round(3), strict=True):
        table = [[S, *map(spread, row)] for S, row in zip(MEMORIES, each, strict=True)]
        study.table(f"squared error of patterns of 64 signs after {name}", columns, table)
    study.finding("beta 1: 5000 patterns are found from their halves in a step", errors[0, -1, -2].max() < 0.01)
    study.finding("1982: 5 patterns are found, 50 are not", errors[1, 0, -1].max() < 0.3 < errors[1, 1, -1].min())
    study.finding("beta 1/sqrt(64): 500 are not found, and eight steps end at the average", errors[1, 2, 1].min() > 0.9)

    # Two opposite patterns are the two states of a magnet: the mean field of Ising spins, m = tanh(beta D m).
    up, b = random_patterns(1, 64), np.array(MAGNET)
    m = np.array([float(retrieve(0.3 * up, torch.cat([up, -up]), each / 64, 200)[0] @ up[0]) / 64 for each in MAGNET])
    mean_field = np.abs(m - np.tanh(b * m)).max() < 1e-3 and ((m > 0.1) == (b > 1)).all()
    study.finding("A pattern and its opposite are Ising spins in mean field: a magnet if beta D > 1", mean_field)
    updates = UPDATES[::2] if study.quick else UPDATES
    with tempfile.TemporaryDirectory() as folder:
        losses = np.array([[last_loss(study, folder, n, seed) for seed in seeds] for n in updates])
    study.table("trained model, nats a character", [f"updates: {n}" for n in updates], [[*map(spread, losses)]])
    study.finding("More updates make the trained model worse", (losses[0] < losses[-1]).all())
    given = corrupted(patterns, 0)[17:18]  # an R: a row for each beta, and one for the network of 1982
    films = [[retrieve(given, patterns, beta, n) if n else given for n in FILM] for beta in LETTER_BETAS]
    films += [[spins(given, patterns, n) for n in FILM]]
    film = torch.cat([torch.cat([F.pad(each.view(7, 5), (1, 1, 1, 1)) for each in row], dim=1) for row in films])
    frames.imshow(film, cmap="gray_r", vmin=-1, vmax=1)
    frames.set(title="a letter, step by step", xticks=[3 + 7 * i for i in range(5)], xticklabels=FILM)
    frames.set(yticks=[4 + 9 * i for i in range(4)], yticklabels=[*(f"beta {b:g}" for b in LETTER_BETAS), "1982"])
    for beta, energy, each in zip(LETTER_BETAS, energies.mean(-1), restored, strict=True):
        plot(fall, steps, energy, "energy", "step", f"beta {beta:g}")
        plot(share, steps, each, "share of letters restored", "step", f"beta {beta:g}")
    for j, name in enumerate(columns[1:]):
        plot(capacity, MEMORIES, errors[0, :, j], "error after one step", "patterns of 64 signs", name)
    capacity.set(xscale="log")
    curve = np.linspace(0.01, 0.995, 100)
    ising.plot(np.arctanh(curve) / curve, curve, "k--", MAGNET, m, "o")
    ising.set(title="two opposite patterns", xlabel="beta D", ylabel="m (line: tanh(beta D m))")
    plot(trained, updates, losses, "trained model: loss", "updates of the query", "validation")
