"""Finds recipes by name or path, and checks their keys before jsonargparse reads them.

jsonargparse names neither the file nor the line of a wrong key, lets the second of two equal keys win, and fails with a
traceback where a section is not a mapping. So the keys are checked here, on the nodes of the YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

import yaml

from minigpt.errors import UserError
from minigpt.files import is_folder, reason

FOLDERS = (Path("configs"), Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "configs")
"""The user's recipes, the package's (a link to the checkout's), and the checkout's where a system has no such links."""


def recipes() -> dict[str, Path]:
    """All recipes by name; the user's own come before the package's."""
    return {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.rglob("*.yaml"), reverse=True)}


def find_recipe(given: str, option: str = "") -> Path:
    """The file of a recipe.

    Args:
        given: its path, or a name such as demo.
        option: what stands before it in messages, such as "--config ".

    Raises:
        UserError: there is none, naming a similar one or all.
    """
    named, path = recipes(), Path(given)
    if path.suffix not in {"", ".yaml", ".yml"} and not option:
        raise UserError(f"{given}: not a recipe; a text is named by --data.source {given}")
    if given in named and not path.is_file():
        return named[given]
    if given and not option and (is_folder(path) or given.startswith("hf:")):
        raise UserError(f"{given}: not a recipe; to start from the weights of a model, write --from {given}")
    try:
        path.open("rb").close()
        return path
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        why = reason(error) if given else "needs the name of a recipe or file"
    files = [str(each) for each in named.values() if not each.is_absolute()]
    known = files if path.suffix and files else list(named)
    guess = [each for each in files if Path(each).name == path.name]
    guess = guess or difflib.get_close_matches(given, known, n=1) or [name for name in named if name == path.stem]
    first = [name for name, each in named.items() if each.parent in FOLDERS]
    hint = f": did you mean {guess[0]}?" if guess else f"; there are {', '.join(sorted(first))}"
    raise UserError(f"{option}{given}: {why}{hint}")


def check_recipe(path: Path, options: Collection[str], settings: Collection[str]) -> None:
    """Check that a recipe is YAML and has only known settings, each once.

    Args:
        path: the file.
        options: all options of the command line, for suggestions.
        settings: the options that a recipe may set.

    Raises:
        UserError: naming file, line and key.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None:
            loader.construct_document(root)
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2001-13-01
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(root, yaml.MappingNode):
        found = "it holds no settings; " if root is None else ""
        raise UserError(f"{path}: {found}a recipe is a mapping such as 'model: {{n_layer: 6}}'")
    _check_keys(path, root, "", options, settings)


def _check_keys(
    path: Path, node: yaml.MappingNode, prefix: str, options: Collection[str], settings: Collection[str]
) -> None:
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        where = f"{path}:{line}"
        if key in lines:
            raise UserError(f"{where}: {key} was given already in line {lines[key]}: keep one of them")
        lines[key] = line
        if key not in options:
            raise UserError(f"{where}: unknown setting {key}{did_you_mean(key, options)}")
        if key not in settings and value_node.value != "null":  # --print_config writes `resume: null`
            raise UserError(f"{where}: {key} belongs on the command line, as --{key}, not in a recipe")
        if any(setting.startswith(f"{key}.") for setting in settings):
            if not isinstance(value_node, yaml.MappingNode):
                raise UserError(f"{where}: {key} is a group of settings: write 'name: value' lines under it")
            _check_keys(path, value_node, f"{key}.", options, settings)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a message with the likeliest of the known names, if one is likely."""
    # Else a forgotten or wrong section: `n_layer` or `train.n_layer` for `model.n_layer`.
    last = name.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(name, sorted(known), n=1) or [
        option for option in sorted(known) if option.rsplit(".", 1)[-1] == last
    ]
    return f": did you mean {close[0]}?" if close else ""
