"""`minigpt export`: a model -> the files of another program, with a card, and the lines that open them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import torch

from minigpt.config import ExportConfig
from minigpt.errors import UserError
from minigpt.files import note, reason, typed, write_text
from minigpt.interop.folder import write_folder
from minigpt.interop.hub import model_name
from minigpt.interop.tokenizer_files import hugging_face_files
from minigpt.lab.export_check import check_export
from minigpt.lab.share import card_of, public
from minigpt.runs.card import Card
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import LoadedModel, load_model, save_weights


def export_run(config: ExportConfig) -> str:
    """Write the folder, check and upload it where asked, and return what to print.

    Raises:
        UserError: no such model, a setting without a counterpart in the other program, the folder exists already or
            cannot be written, a failed check, or the hub refuses.
    """
    name = model_name(config.run)
    out = Path(f"{name}-{config.to}" if config.out is None else config.out)
    if os.path.lexists(out):
        raise UserError(f"{out}: already exists; remove it, or name another folder with --out")
    loaded = load_model(config.run)
    card = card_of(RunFolder(config.run), name, loaded, public(loaded.config))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({reason(error)})") from None
    try:
        lines = WRITERS[config.to](part, out, loaded, config, card)
        part.chmod(0o755)  # mkdtemp's folders are private
        part.rename(out)
    except UserError as error:
        raise UserError(str(error).replace(str(part), str(out))) from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({reason(error)})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    n_bytes = sum(file.stat().st_size for file in out.iterdir())
    said = [f"{out}: {n_bytes / 1e6:.1f} MB: {', '.join(sorted(file.name for file in out.iterdir()))}"]
    said += lines
    if config.check:
        said.append(check_export(out, loaded, config))
    if config.push_to_hub is not None:
        said.append(push(out, config.push_to_hub, private=config.private))
    return "\n".join(said)


def _write_hf(folder: Path, out: Path, loaded: LoadedModel, config: ExportConfig, card: Card) -> list[str]:
    tokenizer = loaded.tokenizer
    for name, content in hugging_face_files(tokenizer, loaded.config.model.context_length).items():
        write_text(folder / name, json.dumps(content, ensure_ascii=False, indent=2))
    write_folder(folder, loaded.model, getattr(torch, config.dtype), end_of_text=tokenizer.end_of_text)
    write_text(folder / "README.md", hub_card(card, config.push_to_hub or f"./{out.name}"))
    return ["open it with", f"  vllm serve {typed(out)}", "or in Python with", *_in_python(str(out))]


def _write_gguf(folder: Path, out: Path, loaded: LoadedModel, config: ExportConfig, card: Card) -> list[str]:
    from minigpt.interop.gguf_file import modelfile, write_gguf  # gguf is slow to import

    file = folder / f"{card.name}.gguf"
    assert config.dtype != "bfloat16"  # the config refuses that
    write_gguf(file, loaded.model, loaded.tokenizer, card.name, config.dtype)
    write_text(folder / "Modelfile", modelfile(file.name, loaded.config.model, loaded.tokenizer))
    name = typed(card.name)
    return [
        "open it with",
        f"  llama-cli -no-cnv -m {typed(out / file.name)}",
        f"  cd {typed(out)} && ollama create {name} -f Modelfile && ollama run {name}",
    ]


def _write_safetensors(folder: Path, out: Path, loaded: LoadedModel, config: ExportConfig, card: Card) -> list[str]:
    model = loaded.model.to(getattr(torch, config.dtype))
    shared = public(loaded.config)
    save_weights(folder / "model.safetensors", model, shared, loaded.tokenizer, loaded.step, card=card.to_json())
    return ["open it with", f"  minigpt sample {typed(out / 'model.safetensors')}"]


WRITERS: dict[str, Callable[[Path, Path, LoadedModel, ExportConfig, Card], list[str]]] = {
    "hf": _write_hf,
    "gguf": _write_gguf,
    "safetensors": _write_safetensors,
}
"""What --to names -> a function that writes into a folder, later renamed to `out`, and returns the lines to print."""


def _in_python(name: str) -> list[str]:
    quoted = json.dumps(name, ensure_ascii=False)
    return [
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"    tokenizer, model = (c.from_pretrained({quoted}) for c in (AutoTokenizer, AutoModelForCausalLM))",
        '    tokens = tokenizer("Once upon a time", return_tensors="pt")',
        "    print(tokenizer.decode(model.generate(**tokens, max_new_tokens=40, do_sample=True)[0]))",
    ]


def hub_card(card: Card, name: str) -> str:
    """README.md of a model on the hub: what it is, and how to open it.

    Args:
        card: of the run.
        name: of the model, for the lines to type.
    """
    head = """\
        ---
        library_name: transformers
        pipeline_tag: text-generation
        tags:
        - minigpt
        ---
        """
    python = "\n".join(line[4:] for line in _in_python(name))
    longest = max((len(run) for run in str(card).split() if set(run) == {"`"}), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join(
        [
            f"{dedent(head)}# {card.name}\n",
            f"{fence}text\n{card}\n{fence}\n",
            "No custom code is needed:\n",
            f"```python\n{python}\n```\n",
            "It is a base model: it continues a text, and answers nothing.",
            "",
        ]
    )


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder to the hub as a model, which is made if it is new; return where it is.

    Raises:
        UserError: not logged in, no right to write there, or no connection.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi()
    try:
        where = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        note(f"uploading {folder} to {where}")
        api.upload_folder(repo_id=where, folder_path=folder, commit_message="Upload a model trained with minigpt")
    except LocalTokenNotFoundError:
        raise UserError(f"push_to_hub={name}: log in first, with `hf auth login`; {folder} is complete") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "log in with `hf auth login`;" if status == 401 else "is it yours, and may your token write?"
        raise UserError(f"push_to_hub={name}: the hub answers {status}: {hint} {folder} is complete") from None
    except Exception as error:  # no connection, of whichever HTTP library the hub's client uses; a name it refuses
        raise UserError(f"push_to_hub={name}: {reason(error)}; {folder} is complete") from None
    return f"-> {api.endpoint}/{where}"
