"""Whether a run compiles its step, and where the compiled code is kept."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from small_runs import small_settings

from minigpt.config import Config
from minigpt.model.compiling import CompiledWithFallback, compute_exactly, restored_exactness
from minigpt.runs.loading import read_checkpoint
from minigpt.training import compile_cache, compile_choice, loss, run
from minigpt.training.compile_cache import VARIABLE, CompileCache, drop_oldest
from minigpt.training.compile_choice import Choice, Saving, choose, on_cpu, why_no_compiler
from minigpt.training.run import train

CPU = torch.device("cpu")
TRAINER: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), precision="32-true")


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, and no folder of compiled code of their own."""
    monkeypatch.setattr(compile_cache, "user_cache_path", lambda *_: tmp_path / "cache")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "cache"


def test_a_cpu_compiles_where_that_saves_more_than_it_takes() -> None:
    saving = Saving(saved=10, cold=11, warm=3)
    assert not on_cpu(saving, is_warm=False, compiler=None).compiles
    assert on_cpu(saving, is_warm=True, compiler=None).compiles
    assert on_cpu(dataclasses.replace(saving, saved=12), is_warm=False, compiler=None).compiles
    assert not on_cpu(dataclasses.replace(saving, saved=2), is_warm=True, compiler=None).compiles
    assert on_cpu(saving, is_warm=True, compiler="no C++ compiler") == Choice(False, "no C++ compiler")


def test_one_core_compiles_twice_as_long_as_two() -> None:
    one, two, many = (Saving.of(Config(), 1, n_cores).cold for n_cores in (1, 2, 16))
    assert one == 2 * two
    assert two == many


def test_what_compiling_saves_grows_with_the_run_until_its_time_is_up() -> None:
    def saved(**settings: Any) -> float:
        config = Config()
        return Saving.of(
            dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **settings)), 2, 2
        ).saved

    assert saved(max_steps=2000) == pytest.approx(2 * saved(max_steps=1000))
    assert saved(max_steps=1000, accumulate_grad_batches=2) == pytest.approx(saved(max_steps=2000))
    assert saved(max_steps=10**6, max_time="00:00:10:00") == pytest.approx(
        2 * saved(max_steps=10**6, max_time="00:00:05:00")
    )


def test_a_gpu_compiles_long_runs_and_an_apple_gpu_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = small_settings(tmp_path, trainer={"max_steps": 1000})
    short = small_settings(tmp_path, trainer={"max_steps": 999})
    cuda = torch.device("cuda")
    monkeypatch.setattr(compile_choice, "has_triton", lambda: True)
    assert choose(long, cuda, is_warm=False).compiles
    assert not choose(short, cuda, is_warm=False).compiles
    assert not choose(long, torch.device("mps"), is_warm=False).compiles
    monkeypatch.setattr(compile_choice, "has_triton", lambda: False)
    assert choose(long, cuda, is_warm=False) == Choice(False, "no Triton")


def test_a_compiler_that_is_missing_or_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no header' >&2\nexit 1\n")
    broken.chmod(0o755)
    for name, said in ((str(broken), "does not work: fatal error: no header"), ("nowhere++", "no C++ compiler")):
        monkeypatch.setenv("CXX", name)
        why_no_compiler.cache_clear()
        assert said in str(why_no_compiler())
    why_no_compiler.cache_clear()


def test_another_text_and_name_share_the_compiled_step_and_another_shape_does_not(
    tmp_path: Path, cache_home: Path
) -> None:
    config = small_settings(tmp_path, model={"vocab_size": 257})

    def folder(**sections: dict[str, Any]) -> Path:
        return CompileCache(small_settings(tmp_path, **sections), TRAINER, None).folder

    same = {"model": {"vocab_size": 257}}
    own = CompileCache(config, TRAINER, None)
    assert own.folder.parent == cache_home / "compiled"
    assert folder(**same, name="other", data={"source": "other.txt"}, trainer={"max_steps": 99}) == own.folder
    assert folder(model={"vocab_size": 258}) != own.folder
    assert folder(**same, data={"batch_size": 5}) != own.folder
    assert folder(**same, trainer={"deterministic": False}) != own.folder


def test_a_cache_is_warm_once_it_is_marked_while_its_folder_is_there(tmp_path: Path, cache_home: Path) -> None:
    cache = CompileCache(small_settings(tmp_path), TRAINER, None)
    with cache.used():
        assert os.environ[VARIABLE] == str(cache.folder)
        cache.mark()
    assert VARIABLE not in os.environ
    assert cache.is_warm
    subprocess.run(["rm", "-r", str(cache.folder)], check=True)
    assert not cache.is_warm


def test_half_written_code_of_a_killed_run_is_cleared_unless_another_run_is_compiling(
    tmp_path: Path, cache_home: Path
) -> None:
    cache, other = (CompileCache(small_settings(tmp_path), TRAINER, None) for _ in range(2))
    half = cache.folder / "ab" / "main.so"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"")
    with cache.used():
        assert not half.parent.exists()
        half.parent.mkdir()
        with other.used():
            assert half.parent.exists()
        cache.mark()
    with cache.used():
        assert half.parent.exists()


def test_a_cache_of_the_users_own_wins_and_torchs_default_does_not(
    tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_settings(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    cache = CompileCache(config, TRAINER, str(tmp_path))
    with cache.used():
        assert os.environ[VARIABLE] == str(tmp_path)
        cache.mark()
    assert cache.is_warm
    assert not CompileCache(dataclasses.replace(config, lora=4, initial_weights="x"), TRAINER, str(tmp_path)).is_warm
    default = torch._inductor.runtime.cache_dir_utils.default_cache_dir()
    assert CompileCache(config, TRAINER, default).folder.parent == cache_home / "compiled"


@pytest.mark.parametrize("full", [False, True])
def test_an_unwritable_folder_or_a_full_disk_leaves_torchs_temporary_folder(
    full: bool, tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if full:
        monkeypatch.setattr(compile_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    else:
        cache_home.write_text("a file, not a folder")
    cache = CompileCache(small_settings(tmp_path), TRAINER, None)
    with cache.used():
        assert VARIABLE not in os.environ
        cache.mark()
    assert not cache.is_warm


def test_folders_used_longest_ago_are_deleted_but_none_that_is_in_use(tmp_path: Path) -> None:
    for number, hours in enumerate((4, 3, 2, 0)):
        folder = tmp_path / str(number)
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "code.so").write_bytes(bytes(100))
        os.utime(folder, (time.time() - 3600 * hours - 60,) * 2 if hours else None)
    drop_oldest(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
    drop_oldest(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"3"}


def test_the_choice_is_said_kept_and_repeated_by_a_resumed_run(
    tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Compiled by tracing alone, which needs no compiler and no time."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic=None: compiled(function, backend="eager"))
    monkeypatch.setattr(run, "choose", lambda *_, **__: Choice(True, "it pays"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    folder = train(small_settings(tmp_path, model={"n_layer": 1}, compile=None))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # training and validation
    assert not counters["graph_break"]
    assert "compile yes: it pays\n" in capsys.readouterr().out
    assert yaml.safe_load(folder.config.read_text())["compile"] is True
    assert len(list(cache_home.glob("compiled/*/minigpt-*"))) == 1
    monkeypatch.setattr(run, "choose", lambda *_, **__: Choice(False, "it does not pay"))
    # compile is null again, as with --resume auto
    longer = small_settings(tmp_path, model={"n_layer": 1}, trainer={"max_steps": 18}, compile=None)
    folder = train(longer, resume=folder.path)
    out = capsys.readouterr().out
    assert "it does not pay" not in out
    assert "compile=" not in out  # nothing has changed
    assert read_checkpoint(folder.last)["minigpt"]["config"]["compile"] is True


@pytest.mark.parametrize(("chunk", "n_programs"), [(2**26, 2), (4 * 16 * 257 // 4, 4)])
def test_a_run_has_a_program_for_each_of_training_and_validation_and_two_more_for_chunks_of_the_loss(
    chunk: int, n_programs: int, tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulated micro-batches, logging steps, two validations, and val batches of which the last is short."""
    programs: list[Any] = []
    compiled = torch.compile

    def count(graph: Any, inputs: Any) -> Any:
        programs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, dynamic=None: compiled(function, backend=count))
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk)
    loss._compiled_sum.cache_clear()
    torch._dynamo.reset()
    trainer = {"max_steps": 4, "val_check_interval": 4, "accumulate_grad_batches": 2, "log_every_n_steps": 2}
    train(small_settings(tmp_path, model={"n_layer": 1}, compile=True, trainer=trainer, sampling={"prompts": []}))
    loss._compiled_sum.cache_clear()
    assert len(programs) == n_programs


def test_a_short_run_on_a_cpu_does_not_compile(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = train(small_settings(tmp_path, compile=None))
    assert "compile no: it would save about 0 s and take" in capsys.readouterr().out
    assert yaml.safe_load(folder.config.read_text())["compile"] is False


def test_torchs_switches_are_put_back_after_a_run() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with restored_exactness():
        compute_exactly()
        assert torch.are_deterministic_algorithms_enabled()
    after = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    assert after == before


def test_a_backward_pass_that_cannot_be_compiled_fails_where_the_uncompiled_function_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself torch compiles it in the loss's `backward()`, which no one catches."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    compiled_passes: list[str] = []

    def forward(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled_passes.append("forward")
        return make_boxed_func(graph)

    def backward(*_: Any) -> Any:
        raise RuntimeError("out of resource: shared memory, Required: 180224, Hardware limit: 101376")

    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend=backend, **options))
    run = CompiledWithFallback(lambda x: (x * x).sum())
    x = torch.arange(3.0, requires_grad=True)
    with pytest.warns(UserWarning, match="torch.compile failed"):
        loss = run(x)
    loss.backward()
    assert compiled_passes == ["forward"]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 4]


def test_a_new_process_can_compile() -> None:
    """The parts of torch that this takes are not imported with torch, and some other test has imported them here."""
    program = "from minigpt.model.compiling import CompiledWithFallback as C; print(C(lambda x: x).compiles)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow  # a minute of compiling
def test_equal_compiled_steps_of_two_threads_are_bitwise_equal() -> None:
    """Without the switch, the gradient of the embedding differs: its rows are added up in any order."""
    before = torch.get_num_threads()
    table = torch.nn.Parameter(torch.randn(65, 128))
    ids = torch.randint(65, (4096,))
    weights = torch.randn(4096, 128)

    def loss() -> torch.Tensor:
        return (torch.nn.functional.embedding(ids, table) * weights).sum()

    try:
        torch.set_num_threads(2)
        with restored_exactness():
            compute_exactly()
            compiled = CompiledWithFallback(loss)
            gradients = [torch.autograd.grad(compiled(), table)[0] for _ in range(20)]
        assert compiled.compiles
        assert all(torch.equal(each, gradients[0]) for each in gradients)
    finally:
        torch.set_num_threads(before)
