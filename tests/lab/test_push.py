"""`minigpt export --push_to_hub`: what arrives at a server that answers as the hub does, and what a refusal says."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import FakeHub, fake_hub
from interop.comparing import SMALL

from minigpt.cli.main import dispatch
from minigpt.config import Config, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.runs.loading import save_weights

PUSH = ["export", "story.safetensors", "--push_to_hub=me/story-gpt"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, a user who is logged in, and a model in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = Config(model=GPTConfig(**(SMALL | {"vocab_size": 257})))
    save_weights("story.safetensors", GPT(config.model), config, BytesTokenizer())
    with fake_hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        yield server


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path("story-hf").iterdir()}


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        dispatch(PUSH)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("push_to_hub=me/story-gpt: ")
    assert said.endswith("story-hf is complete")
    assert len(contents()) == 6
    return said


def test_the_files_that_arrive_are_those_of_the_folder(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch([*PUSH, "--private"])
    assert hub.files == contents()
    assert hub.created == [{"name": "story-gpt", "organization": "me", "visibility": "private"}]
    assert hub.tokens == {"Bearer hf_fake"}
    assert list(hub.uploaded.values()) == [contents()["model.safetensors"]]
    assert capsys.readouterr().out.splitlines()[-1] == f"-> {hub.address}/me/story-gpt"
    assert 'from_pretrained("me/story-gpt")' in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/repos/create", 401, "the hub answers 401: log in with `hf auth login`; "),
        ("/repos/create", 403, "the hub answers 403: is it yours, and may your token write? "),
        ("/commit/", 403, "the hub answers 403: is it yours, and may your token write? "),
    ],
)
def test_a_refusal_is_one_line_and_the_folder_stays(hub: FakeHub, part: str, status: int, said: str) -> None:
    hub.status = {part: status}
    assert said in refusal()
    assert not hub.files


def test_without_a_connection_the_folder_stays_too(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in refusal()


def test_who_is_not_logged_in_is_told_how(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    hub.status = {"/repos/create": 401}
    assert "`hf auth login`" in refusal()
