"""What torchrun, SLURM and others have started is as many processes as the run is for, or it is refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.trainer.connectors import accelerator_connector
from lightning.pytorch.utilities import rank_zero_only
from scripts import ROOT
from small_runs import small_settings, with_trainer

from minigpt.config import TrainerConfig
from minigpt.errors import UserError
from minigpt.training import launchers
from minigpt.training.run import check_before_text, train

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}
TWO_NODES = TORCHRUN | {"WORLD_SIZE": "4"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
BY_HAND = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}

Started = Callable[[dict[str, str]], None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Give this process the variables of a launcher; at the end they are gone, with those that Lightning sets."""

    def start(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "unset")
        monkeypatch.delenv(name)
    return start


@pytest.mark.parametrize(
    ("variables", "trainer", "message"),
    [
        (
            TORCHRUN,
            {"devices": 1},
            "torchrun started 2 processes, but trainer.devices=1 x trainer.num_nodes=1 is 1: add --trainer.devices 2, "
            "or start 1 on each node with --nproc_per_node=1",
        ),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, {"devices": 2}, "is 2: add --trainer.devices 1, or"),
        (TORCHRUN, {"devices": 2, "num_nodes": 2}, "is 4: add --trainer.num_nodes 1, or start 2 on each node"),
        (TWO_NODES, {}, "trainer.devices=2 x trainer.num_nodes=1 is 2: add --trainer.num_nodes 2, or"),
        (TWO_NODES, {"devices": 1}, "is 1: add --trainer.devices 2 --trainer.num_nodes 2, or"),
        (
            SLURM,
            {"devices": 1},
            "SLURM started 2 processes, but trainer.devices=1 x trainer.num_nodes=1 is 1: add --trainer.devices 2, "
            "or start 1 on each node with --ntasks-per-node=1",
        ),
        (
            {k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"},  # `python train.py` in a script of sbatch's
            {},
            "is 1: add --trainer.devices 2 and start it with srun, or start 1 on each node with --ntasks-per-node=1",
        ),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}, {"devices": 4}, "SLURM started 1 process, but"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_NTASKS_PER_NODE"}, {}, "Use `--ntasks-per-node=2` instead"),
        (
            SLURM | {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "2"},
            {},
            "srun started 2 processes, but Lightning does not connect them in a job named interactive",
        ),
        (OPEN_MPI, {}, "mpirun started 2 processes, but without mpi4py they cannot find each other"),
        (BY_HAND, {}, "the launcher started 2 processes, but trainer.devices=1 x"),
    ],
)
def test_another_number_of_processes_is_refused_with_what_to_type(
    variables: dict[str, str], trainer: dict[str, Any], message: str, started: Started, tmp_path: Path
) -> None:
    started(variables)
    with pytest.raises(UserError) as refused:
        train(with_trainer(small_settings(tmp_path), **trainer))
    assert message in str(refused.value)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("variables", "trainer", "n_devices"),
    [
        (TORCHRUN, {}, 2),
        (TORCHRUN, {"devices": 2}, 2),
        (TWO_NODES, {"num_nodes": 2}, 2),
        (SLURM, {}, 2),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, {}, 1),  # a shell with an allocation
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}, {}, 1),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, {}, 1),  # such a shell with a name
        (SLURM | {"SLURM_NTASKS": "8"} | TORCHRUN, {}, 2),  # torchrun within a job of SLURM's
        (BY_HAND, {"devices": 2}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, {}, 1),
    ],
)
def test_devices_that_are_left_out_are_as_many_as_the_launcher_started(
    variables: dict[str, str], trainer: dict[str, Any], n_devices: int, started: Started, tmp_path: Path
) -> None:
    started(variables)
    assert check_before_text(with_trainer(small_settings(tmp_path), **trainer)).num_devices == n_devices


def test_the_other_ranks_end_silently_and_after_the_first(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = list[float]()
    monkeypatch.setattr(launchers.time, "sleep", waited.append)
    started(TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"})
    with pytest.raises(SystemExit, match="2"):
        train(with_trainer(small_settings(tmp_path), devices=1))
    assert (sum(waited), capsys.readouterr().err) == (launchers.SECONDS_TO_EXIT, "")


def test_tasks_of_slurm_that_srun_has_not_started_are_said_once(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"})
    launchers._note_srun.cache_clear()
    for _ in range(2):
        check_before_text(with_trainer(small_settings(tmp_path), devices=2))
    assert (
        capsys.readouterr().out.count("note: SLURM has 2 tasks for this job, but srun did not start this process") == 1
    )


def test_text_that_is_piped_in_is_refused_for_several_processes_of_a_launcher(started: Started, tmp_path: Path) -> None:
    started(TORCHRUN)
    with pytest.raises(UserError, match=r"^data\.source=-: only one process can read stdin, and this run has 2"):
        check_before_text(small_settings(tmp_path, data={"source": "-"}))


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp_spawn",
        "ddp_fork_find_unused_parameters_true",
        "ddp_notebook",
        {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "forkserver"}},
    ],
)
def test_strategies_that_return_nothing_to_this_process_are_refused_with_what_to_use(strategy: Any) -> None:
    with pytest.raises(UserError, match=r"^trainer\.strategy=.*: use ddp, with minigpt train in a terminal"):
        TrainerConfig(strategy=strategy)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
def test_several_processes_are_refused_at_a_prompt(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
    optimizer = {"name": "adamw"}
    config = small_settings(tmp_path, optimizer=optimizer, trainer={"devices": 2, "strategy": strategy})
    with pytest.raises(
        UserError, match=r"^trainer\.devices=2: in a notebook or at a Python prompt a run has one process"
    ):
        check_before_text(config)


def test_at_a_prompt_auto_is_one_gpu_which_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(launchers.torch.cuda, "device_count", lambda: 2)
    launchers._note_one_gpu.cache_clear()
    strategy = SimpleNamespace(launcher=None, root_device=SimpleNamespace(type="cuda"))
    for devices in ("auto", "auto", 1):
        launchers.check_notebook(SimpleNamespace(world_size=1, strategy=strategy), devices)
    assert capsys.readouterr().out == "note: here a run uses one of 2 GPUs; minigpt train in a terminal uses all\n"


@pytest.mark.slow  # twenty seconds: torchrun and two processes, twice
def test_torchrun_trains_one_run_or_none(tmp_path: Path) -> None:
    config = small_settings(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config.to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*torchrun, "train.py", f"--config={tmp_path}/small.yaml", *arguments]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300, env=env)

    refused = run("--trainer.devices", "1")
    assert refused.returncode != 0
    assert refused.stderr.count("error: torchrun started 2 processes, but trainer.devices=1") == 1
    assert not (tmp_path / "runs").exists()
    trained = run()
    assert (trained.returncode, trained.stdout.count("done: 12 steps")) == (0, 1), trained.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"]
