"""torchrun, SLURM, LSF or MPI -> how many processes it has started, and whether the run is for as many.

Lightning takes its ranks from them and compares nothing: two processes that are each given one device train two models
in one folder.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import lightning as L
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
"""Of these launchers: how many processes to start on each node."""
ON_THIS_NODE = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables with the number of processes on a node; torchrun's first, which may run inside the others."""
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables of Open MPI and of MPICH, which Lightning does not read: it asks mpi4py."""


class Launcher(NamedTuple):
    """What has started this process, beside others for the same run."""

    name: str
    n_processes: int
    """On all nodes together."""
    per_node: int | None
    """None where the launcher does not say."""
    rank: int
    is_certain: bool
    """Whether so many surely run: tasks of sbatch become processes by srun alone, and WORLD_SIZE may be left over."""


def find_launcher(plugins: Iterable[Any] = ()) -> Launcher | None:
    """The launcher of this process, as Lightning finds it; None where Lightning starts the other processes itself.

    Args: plugins of the trainer, as one may be a cluster environment of the user's.

    Raises:
        UserError: the processes could not find each other. On rank 0, as in `check_processes`.
    """
    environment = next((plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)), None)
    try:
        environment = environment or next((kind() for kind in NAMES if kind.detect()), None)
    except RuntimeError as error:  # SLURM's --ntasks alone, which does not say how many there are on a node
        _refuse(" ".join(str(error).split()), int(os.environ.get("SLURM_PROCID", 0)))
    if isinstance(environment, SLURMEnvironment) and "SLURM_PROCID" not in os.environ:
        return None  # a shell with an allocation: nothing was started by srun
    if environment is not None:
        n_processes = environment.world_size()
        said = next((int(os.environ[name]) for name in ON_THIS_NODE if name in os.environ), None)
        per_node = said if said is not None and n_processes % said == 0 else None
        name = NAMES.get(type(environment), "the launcher")
        is_certain = name in NAMES.values() and (name != "SLURM" or n_processes == 1 or "SLURM_STEP_ID" in os.environ)
        return Launcher(name, n_processes, per_node, environment.global_rank(), is_certain)
    if {"WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():  # by hand, by DeepSpeed's launcher, or by Lightning itself
        rank = os.environ.get("RANK", os.environ["LOCAL_RANK"])
        return Launcher("the launcher", int(os.environ["WORLD_SIZE"]), None, int(rank), is_certain=False)
    _refuse_unjoined()
    return None


def _refuse_unjoined() -> None:
    """Refuse several processes whose launcher Lightning does not take for one."""
    n_processes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if n_processes > 1:
        _refuse(
            f"srun started {n_processes} processes, which Lightning does not join in a job that is named "
            f"{SLURMEnvironment.job_name()}: start them with srun --job-name train",
            int(os.environ.get("SLURM_PROCID", 0)),
        )
    n_processes, rank = (max(int(os.environ.get(name, 0)) for name in names) for names in (MPI_SIZES, MPI_RANKS))
    if n_processes > 1:
        _refuse(
            f"mpirun started {n_processes} processes, which find each other only where mpi4py is installed: "
            f"pip install mpi4py, or start them with torchrun --nproc_per_node {n_processes}",
            rank,
        )


def devices_of(launcher: Launcher, devices: Any, n_nodes: int) -> Any:
    """trainer.devices; where the user leaves them to us ("auto"), one for each process that was started on a node."""
    if devices != "auto" or not launcher.is_certain:
        return devices
    return launcher.per_node or max(1, launcher.n_processes // n_nodes)


def check_processes(trainer: L.Trainer, launcher: Launcher) -> None:
    """Refuse a run that is not for as many processes as were started. Rank 0 says it for all.

    Raises:
        UserError: on rank 0.
        SystemExit: on the others, a little later: torchrun ends all processes when one has ended.
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


@functools.cache  # a run makes its trainer twice
def _note_srun(n_tasks: int) -> None:
    print(
        f"note: SLURM has {n_tasks} tasks for this job, and srun did not start this one: without srun in front of the "
        "command it waits for the others forever",
        flush=True,
    )


def _refuse(why: str, rank: int) -> NoReturn:
    if rank > 0:
        time.sleep(SECONDS_TO_EXIT)
        raise SystemExit(2)
    raise UserError(why)
