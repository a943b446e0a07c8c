"""Files of prompts and of texts: every mistake before anything is written, and nothing lost whatever happens."""

import json
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import BYTES, real
from filelock import FileLock
from scripts import ROOT, ready_python

from minigpt.cli import parsing
from minigpt.config import SampleConfig
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.generation.modes.texts_file import BATCH_SIZE, Job, read_jobs, run, write_jobs

PROMPTS = '{"prompt": "ab"}\n\n{"prompt": "é ", "id": [1, null], "seed": 4}\r\n{"prompt": "", "temperature": 0}\n'


def jobs_of(text: str, **changes: Any) -> list[Job]:
    config = SampleConfig("r", prompts="p", out="o", **{"max_new_tokens": 5} | changes)
    return read_jobs(text, "p.jsonl", config, parsing.change)


def write(text: str, out: Path, num_samples: int = 2, writer: Writer | None = None, **changes: Any) -> None:
    write_jobs(jobs_of(text, num_samples=num_samples, **changes), writer or Writer(real(), BYTES), num_samples, out)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("once upon a time", "not JSON (Expecting value, column 1)"),
        ("once upon a time", "use --prompt_file for a file that is one prompt"),
        ('{"prompt": "x"', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "\x00"}', "not JSON"),
        ("5", "5 is not an object"),
        ("[]", "is not an object"),
        ('{"seed": 5}', "its prompt is missing or not a string: a line is an object such as"),
        ('{"prompt": null}', "its prompt is missing or not a string"),
        ('{"promt": "x"}', "unknown setting promt: did you mean prompt?"),
        ('{"prompt": "x", "tempratur": 1}', "unknown setting tempratur: did you mean temperature?"),
        ('{"prompt": "x", "num_samples": 1}', "unknown setting num_samples; there are prompt, id, max_new_tokens"),
        ('{"prompt": "x", "temperature": "hot"}', "temperature=hot: expected float"),
        ('{"prompt": "x", "temperature": NaN}', "NaN is not a number in JSON"),
        ('{"prompt": "x", "seed": null}', "seed=null: expected int"),
        ('{"prompt": "x", "seed": 2147483647}', "seed=2147483648: must lie between"),
        ('{"prompt": "x", "top_k": 0}', "top_k=0: must be at least 1"),
        ('{"prompt": "x", "prompt": "y"}', "prompt is given twice"),
        ('{"prompt": "\\ud800"}', "half a surrogate pair"),
        ('{"prompt": "x", "id": 1e999}', "a number out of range"),
    ],
)
def test_a_mistake_in_the_prompts_is_one_line_that_names_its_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        jobs_of(f'{{"prompt": "a"}}\n{line}\n', num_samples=2)
    assert str(caught.value).startswith("p.jsonl:2: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_without_prompts_is_refused() -> None:
    with pytest.raises(UserError, match="there is no prompt in it"):
        jobs_of("\n \r\n")


def test_a_line_has_its_own_settings_and_the_rest_is_the_command_lines() -> None:
    jobs = jobs_of('\ufeff{"prompt": "a", "stop": "[a]", "seed": 4}\r\n\n{"prompt": "b"}', top_k=9)
    assert [(job.prompt, job.where, job.config.seed, job.config.stops) for job in jobs] == [
        ("a", "p.jsonl:1", 4, ["[a]"]),
        ("b", "p.jsonl:3", 1337, []),
    ]
    assert {job.config.top_k for job in jobs} == {9}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({"prompt": "x" * 33}), "p.jsonl:2: the prompt has 33 tokens"),
        ('{"prompt": "x", "stop_tokens": [999]}', "p.jsonl:2: stop_tokens: there is no token 999"),
    ],
)
def test_what_the_model_refuses_is_found_before_anything_is_written(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write(f'{{"prompt": "a"}}\n{line}', tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_line_of_the_texts_has_all_that_generate_returns(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.jsonl"
    write(PROMPTS, out)
    found, writer = lines_of(out), Writer(real(), BYTES)
    assert [(each["line"], each["sample"], each["seed"], each["prompt"]) for each in found] == [
        (line, sample, seed + sample, prompt)
        for line, seed, prompt in ((1, 1337, "ab"), (3, 4, "é "), (4, 1337, ""))
        for sample in (0, 1)
    ]
    assert [each.get("id") for each in found] == [None, None, [1, None], [1, None], None, None]
    assert len({each["of"] for each in found}) == 2  # one line has a setting of its own; a seed is none
    for each in found:
        settings = {"temperature": 0} if each["line"] == 4 else {}
        alone = writer.generate(each["prompt"], seed=each["seed"], max_new_tokens=5, **settings)
        assert (each["text"], each["tokens"], each["ended"]) == (alone.text, list(alone.tokens), alone.ended)
        assert each["log_probabilities"] == pytest.approx(alone.log_probabilities, abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("num_samples", [1, 3, BATCH_SIZE + 2])
def test_cut_off_anywhere_it_goes_on_to_the_same_bytes(num_samples: int, tmp_path: Path) -> None:
    out, writer = tmp_path / "out", Writer(real(), BYTES)
    text = "".join(f'{{"prompt": "{chr(97 + i)}"}}\n' for i in range(BATCH_SIZE + 1 if num_samples == 1 else 3))
    write(text, out, num_samples, writer)
    whole = out.read_bytes()
    assert whole.count(b"\n") == text.count("\n") * num_samples
    for cut in (0, 1, 30, len(whole) // 2, whole.rindex(b"\n", 0, -1) + 1, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:cut])
        write(text, out, num_samples, writer)
        assert out.read_bytes() == whole


def test_prompts_may_be_added_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write('{"prompt": "a"}', out)
    before = out.read_bytes()
    write('{"prompt": "a"}\n{"prompt": "b"}', out)
    assert out.read_bytes().startswith(before)
    assert [each["prompt"] for each in lines_of(out)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ('{"prompt": "b"}', {}, r"out:1: is from other prompts or settings \(prompt differs\)"),
        ('{"prompt": "a", "id": 5}', {}, "out:1: is not an output line of these prompts"),
        ('{"prompt": "a"}', {"seed": 1}, r"out:1: is from other prompts or settings \(seed differs\)"),
        ('{"prompt": "a"}', {"top_k": 1}, "out:1: was written with other settings or weights"),
        ('{"prompt": "a"}', {"num_samples": 1}, "out:2: there are more lines than these prompts have samples"),
        ('{"prompt": "a"}', {"writer": Writer(real(n_layer=1), BYTES)}, "out:1: was written with other settings"),
    ],
)
def test_a_file_from_something_else_is_refused_and_stays(
    text: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write('{"prompt": "a"}', out)
    before = out.read_bytes()
    with pytest.raises(UserError, match=message):
        write(text, out, **changes)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes", b"notes\n", b"\n", b"\xff\x00", b'{"line": 1}\n', b"5\n"])
def test_a_file_of_the_users_is_never_touched(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(content)
    with pytest.raises(UserError, match="out:1: is not an output line of these prompts"):
        write('{"prompt": "a"}', out)
    assert out.read_bytes() == content


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".out.lock"), pytest.raises(UserError, match="another process writes it"):
        write('{"prompt": "a"}', tmp_path / "out")


@pytest.mark.parametrize("name", ["-", ".", "/dev/full", "prompts", "link", "x" * 300, "prompts/out", "/proc/out"])
def test_a_place_where_no_texts_can_be_kept_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Writer, "load", lambda *_, **__: Writer(real(), BYTES))
    Path("prompts").write_bytes(PROMPTS.encode())
    Path("link").symlink_to("prompts")
    with pytest.raises(UserError, match=r"^out="):
        run(SampleConfig("r", prompts="prompts", out=name), PROMPTS, parsing.change)
    assert Path("prompts").read_bytes() == PROMPTS.encode()


def test_where_the_disk_is_full_the_complete_texts_are_kept_and_it_goes_on(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="file too large"):
            write('{"prompt": "a"}', tmp_path / "out", num_samples=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = (tmp_path / "out").read_bytes()
    assert kept.count(b"\n") >= 2
    write('{"prompt": "a"}', tmp_path / "out", num_samples=9)
    assert (tmp_path / "out").read_bytes().startswith(kept)
    assert len(lines_of(tmp_path / "out")) == 9


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_killed_goes_on_to_the_texts_of_one_that_was_not(
    end: signal.Signals, tiny_run: Path, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(f'{{"prompt": "def f{i}"}}\n' for i in range(4 * BATCH_SIZE)))
    arguments = [str(tiny_run), "--prompts", str(prompts), "--max_new_tokens", "50", "--out", str(out)]
    command = [ready_python(), "sample.py", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not out.exists() or not out.stat().st_size:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(end)
    err = process.communicate()[1]
    n_kept = out.read_bytes().count(b"\n")
    assert 0 < n_kept < 4 * BATCH_SIZE
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert err == f"stopped; complete lines are in {out}, and the same command resumes\n"
    run(SampleConfig(str(tiny_run), prompts="-", out=str(out), max_new_tokens=50), prompts.read_text(), parsing.change)
    whole = tmp_path / "whole.jsonl"
    run(
        SampleConfig(str(tiny_run), prompts="-", out=str(whole), max_new_tokens=50), prompts.read_text(), parsing.change
    )
    assert out.read_bytes() == whole.read_bytes()
