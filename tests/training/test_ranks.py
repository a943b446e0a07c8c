"""Ranks start alike or not at all, and tell each other all they have to in one reduction a step."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from scripts import ROOT, bare_environment, ready_python, run_script
from small_runs import small_settings, with_trainer

from minigpt.training.ranks import difference, is_lost_connection
from minigpt.training.run import train

QUIET: dict[str, Any] = {"attention": {"enabled": False}, "sampling": {"prompts": []}}


def test_a_node_that_does_not_see_the_run_of_the_other_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    """Two nodes of one process, each with a runs folder of its own, as on local disks."""
    begun = small_settings(tmp_path, model={"n_layer": 1}, trainer={"max_steps": 2, "val_check_interval": 2}, **QUIET)
    folder, port, nodes = train(begun), str(find_free_network_port()), list[subprocess.Popen[str]]()
    for rank in (0, 1):
        config = with_trainer(begun, max_steps=4, num_nodes=2, devices=1, strategy="ddp").to_dict()
        config["runs_dir"] = str(tmp_path / ("runs" if rank == 0 else "other"))
        (tmp_path / f"{rank}.yaml").write_text(yaml.safe_dump(config))
        launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        launched |= {"NODE_RANK": str(rank), "LOCAL_RANK": "0"}
        command = [ready_python(), "train.py", "--resume=auto", f"--config={tmp_path}/{rank}.yaml"]
        with (tmp_path / f"{rank}.txt").open("w") as output:
            env = bare_environment() | launched
            nodes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, text=True))
    try:
        assert nodes[0].wait(120) == 2
        nodes[1].send_signal(signal.SIGTERM)  # as torchrun would; by itself it ends a few seconds later
        assert nodes[1].wait(20) in {2, 128 + signal.SIGTERM}
    finally:
        for node in nodes:
            node.kill()
    outputs = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    refused = (
        "error: the ranks would train different runs: step at the start is 2 on rank 0, 0 on rank 1: put runs_dir on"
    )
    assert refused in outputs[0]
    assert not any("Traceback" in output for output in outputs)
    assert folder.last.exists()


def test_what_differs_between_ranks_is_named_with_the_first_rank_that_differs() -> None:
    same = {"step at the start": "0", "minigpt's code": "1", "text": "a 256", "seed": "1"}
    assert difference([same, same, same]) is None
    said = difference([same, same, same | {"seed": "2", "text": "b 256"}])
    assert said == (
        "the ranks would train different runs: text is a 256 on rank 0, b 256 on rank 2; seed is 1 on rank 0, 2 on "
        "rank 2: start every rank with the same command, text and version"
    )
    newer = same | {"model.new": "1", "a": "1", "b": "2", "minigpt's code": "2"}
    assert "minigpt's code is 1 on rank 0, 2 on rank 1; model.new is None on rank 0" in str(difference([same, newer]))
    assert "and 1 more: start every rank" in str(difference([same, newer]))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_an_error_of_the_connection_is_told_from_others(error: Exception, lost: bool) -> None:
    assert is_lost_connection(error) is lost


@pytest.mark.parametrize(
    ("strategy", "settings", "expected"),
    [
        # The gradients, and one reduction of all that ranks tell each other.
        ("ddp", {"max_time": "00:01:00:00", "log_every_n_steps": 1}, {"c10d::allreduce_": 2}),
        pytest.param("ddp", {"accumulate_grad_batches": 2}, {"c10d::allreduce_": 2}, marks=pytest.mark.slow),
        # Shards of the gradient have a norm each, which are added up.
        pytest.param("fsdp2", {}, {"c10d::allreduce_": 2}, marks=pytest.mark.slow),
    ],
)
def test_an_optimizer_step_has_as_many_collectives_as_are_said_here(
    strategy: str, settings: dict[str, Any], expected: dict[str, int], tmp_path: Path
) -> None:
    count = {"class_path": "ranks.Collectives", "init_args": {"folder": str(tmp_path)}}
    trainer = {"devices": 2, "strategy": strategy, "max_steps": 8, "val_check_interval": 1000, "callbacks": [count]}
    config = small_settings(
        tmp_path, model={"n_layer": 1}, optimizer={"name": "adamw"}, trainer=trainer | settings, **QUIET
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.to_dict()))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = run_script("train.py", "--config", tmp_path / "recipe.yaml", env=bare_environment() | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "collectives.json").read_text())
    found = {name: n / 5 for name, n in counts.items()}
    assert {name: found.get(name) for name in expected} == expected, found
    assert not {"c10d::barrier", "c10d::broadcast_"} & found.keys()
