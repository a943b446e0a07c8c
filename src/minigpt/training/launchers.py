"""Checks that torchrun, SLURM, LSF or MPI started as many processes as the run has devices.

Lightning takes ranks from the launcher without comparing: two processes with devices=1 each would train two models in
one folder.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from minigpt.errors import UserError
from minigpt.training.stopping import SECONDS_TO_EXIT

NAMES: dict[type[ClusterEnvironment], str] = {
    TorchElasticEnvironment: "torchrun",
    SLURMEnvironment: "SLURM",
    LSFEnvironment: "LSF",
    MPIEnvironment: "MPI",
}
"""In the order in which Lightning looks for them."""
OPTIONS = {"torchrun": "--nproc_per_node", "SLURM": "--ntasks-per-node"}
"""Each launcher's option for the number of processes per node."""
ON_THIS_NODE = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables with the number of processes on this node; torchrun's first, since it may run inside the others."""
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables of Open MPI and MPICH. Lightning does not read them: it needs mpi4py."""


ONE_DEVICE = "in a notebook or at a Python prompt a run has one process: give trainer.devices=1, or train in a terminal"


class Launcher(NamedTuple):
    """The launcher that started this process and the run's other processes."""

    name: str
    n_processes: int
    """Over all nodes."""
    per_node: int | None
    """None if the launcher does not say."""
    rank: int
    is_certain: bool
    """Whether n_processes surely run. Not under sbatch without srun, nor if only WORLD_SIZE says so."""


def find_launcher(plugins: Iterable[Any] = ()) -> Launcher | None:
    """The launcher that Lightning will detect; None if Lightning starts the other processes itself.

    Args: plugins of the trainer, one of which may be a ClusterEnvironment.

    Raises:
        UserError: the processes could not find each other. On rank 0, as in `check_processes`.
    """
    environment = next((plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)), None)
    try:
        environment = environment or next((kind() for kind in NAMES if kind.detect()), None)
    except RuntimeError as error:  # SLURM's --ntasks without --ntasks-per-node
        _refuse(" ".join(str(error).split()), int(os.environ.get("SLURM_PROCID", 0)))
    if isinstance(environment, SLURMEnvironment) and "SLURM_PROCID" not in os.environ:
        return None  # an interactive allocation: srun has started nothing
    if environment is not None:
        n_processes = environment.world_size()
        said = next((int(os.environ[name]) for name in ON_THIS_NODE if name in os.environ), None)
        per_node = said if said is not None and n_processes % said == 0 else None
        name = NAMES.get(type(environment), "the launcher")
        is_certain = name in NAMES.values() and (name != "SLURM" or n_processes == 1 or "SLURM_STEP_ID" in os.environ)
        return Launcher(name, n_processes, per_node, environment.global_rank(), is_certain)
    if {"WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():  # set by hand, DeepSpeed's launcher or Lightning
        rank = os.environ.get("RANK", os.environ["LOCAL_RANK"])
        return Launcher("the launcher", int(os.environ["WORLD_SIZE"]), None, int(rank), is_certain=False)
    _refuse_unjoined()
    return None


def check_notebook(trainer: L.Trainer, devices: Any) -> None:
    """Refuse several processes in a notebook or at a Python prompt, and say that "auto" is one of several GPUs there.

    Lightning would fork the notebook's process: the run would end with all that it returns left in the others.

    Raises:
        UserError: the trainer would fork.
    """
    if trainer.world_size > 1 and getattr(trainer.strategy.launcher, "is_interactive_compatible", False):
        raise UserError(f"trainer.devices={devices}: {ONE_DEVICE}")
    n_gpus = torch.cuda.device_count() if trainer.strategy.root_device.type == "cuda" else 1
    if devices == "auto" and is_interactive() and n_gpus > 1:
        _note_one_gpu(n_gpus)


def is_interactive() -> bool:
    """Whether this is a notebook or a Python prompt."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


@functools.cache  # a run builds its trainer twice
def _note_one_gpu(n_gpus: int) -> None:
    print(f"note: here a run uses one of {n_gpus} GPUs; minigpt train in a terminal uses all", flush=True)


def _refuse_unjoined() -> None:
    """Refuse several processes that Lightning would not join: interactive srun, and MPI without mpi4py."""
    n_processes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if n_processes > 1:
        _refuse(
            f"srun started {n_processes} processes, but Lightning does not connect them in a job named "
            f"{SLURMEnvironment.job_name()}: start them with srun --job-name train",
            int(os.environ.get("SLURM_PROCID", 0)),
        )
    n_processes, rank = (max(int(os.environ.get(name, 0)) for name in names) for names in (MPI_SIZES, MPI_RANKS))
    if n_processes > 1:
        _refuse(
            f"mpirun started {n_processes} processes, but without mpi4py they cannot find each other: "
            f"pip install mpi4py, or start them with torchrun --nproc_per_node {n_processes}",
            rank,
        )


def devices_of(launcher: Launcher, devices: Any, n_nodes: int) -> Any:
    """trainer.devices; for "auto", the number of processes that the launcher started on each node."""
    if devices != "auto" or not launcher.is_certain:
        return devices
    return launcher.per_node or max(1, launcher.n_processes // n_nodes)


def check_processes(trainer: L.Trainer, launcher: Launcher) -> None:
    """Refuse a run whose number of devices differs from the number of started processes.

    Raises:
        UserError: on rank 0, so that the message is printed once.
        SystemExit: on the others, after SECONDS_TO_EXIT: torchrun kills all processes as soon as one fails.
    """
    devices, n_nodes, started = trainer.num_devices, trainer.num_nodes, launcher.n_processes
    needs_srun = launcher.name == "SLURM" and not launcher.is_certain
    if devices * n_nodes == started:
        if needs_srun and launcher.rank == 0:
            _note_srun(started)
        return
    per_node = launcher.per_node or started
    wanted = (("devices", devices, per_node), ("num_nodes", n_nodes, started // per_node))
    arguments = " ".join(f"--trainer.{name} {needed}" for name, given, needed in wanted if given != needed)
    option = OPTIONS.get(launcher.name)
    _refuse(
        f"{launcher.name} started {started} process{'es' * (started > 1)}, but trainer.devices={devices} x "
        f"trainer.num_nodes={n_nodes} is {devices * n_nodes}: add {arguments}{' and start it with srun' * needs_srun}"
        + (f", or start {devices} on each node with {option}={devices}" if option else ""),
        launcher.rank,
    )


@functools.cache  # a run builds its trainer twice
def _note_srun(n_tasks: int) -> None:
    print(
        f"note: SLURM has {n_tasks} tasks for this job, but srun did not start this process: without srun in front of "
        "the command it waits for the other tasks forever",
        flush=True,
    )


def _refuse(why: str, rank: int) -> NoReturn:
    if rank > 0:
        time.sleep(SECONDS_TO_EXIT)
        raise SystemExit(2)
    raise UserError(why)
