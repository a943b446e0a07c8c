"""Parses command lines and YAML recipes into validated configs; mistakes end with a one-line message and exit code 2.

jsonargparse does the parsing; this module turns its errors into one line that names file, key and remedy. It imports
nothing heavy, so mistakes are reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from minigpt.cli.streams import drop, outlive_reader
from minigpt.config import (
    AUTO,
    CompareConfig,
    Config,
    GenerationConfig,
    InspectConfig,
    ProofConfig,
    ReportConfig,
    SampleConfig,
)
from minigpt.config.checks import type_name
from minigpt.environment import is_ours, refuse_missing
from minigpt.errors import UserError
from minigpt.files import reason, refuse_url, shown
from minigpt.signals import SIGNALS, exit_by_signal, handled_by

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run(main: Callable[[list[str]], None], *, outlives_reader: bool = True) -> NoReturn:
    """Call a program's main with the command line; exit with 0, 2 (a UserError) or 128 + the signal's number.

    Args:
        main: the program.
        outlives_reader: continue after the reader of standard output has closed it (`train.py | head`); False exits
            quietly with code 0, for programs whose result is their output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as in `sample.py <&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 (open to the end)
    for stream in (sys.stdout, sys.stderr):  # an ASCII-only pipe gets other characters as \\u00e9
        with contextlib.suppress(AttributeError, OSError):  # a replaced stream may lack reconfigure
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    outlive_reader("stderr")
    if outlives_reader:
        outlive_reader("stdout")
    try:
        with handled_by(exit_by_signal, set(SIGNALS) - {signal.SIGINT}):  # Ctrl-C is Python's KeyboardInterrupt
            main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        _flush()
        print(f"error: {shown(error, sys.stderr)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _flush()
        sys.exit(130)
    except ModuleNotFoundError as error:
        if not is_ours(error):
            raise
        refuse_missing(error)
    except BrokenPipeError:
        if outlives_reader:  # not standard output: another pipe, such as a worker's
            raise
        drop(sys.stdout.fileno())  # else Python's flush at exit fails again
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        drop(sys.stdout.fileno())
        print(f"error: no space left to write output ({reason(error)}): free some", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _flush() -> None:
    """Flush standard output; drop it if its pipe is closed, since a failed flush at exit would change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout.fileno())


def parse_training(
    argv: Sequence[str], program: str = "train.py", what: str = "Train a GPT; later arguments override earlier ones."
) -> tuple[Config, Path | None]:
    """Parse the command line of `train.py`, or of a program with the same arguments.

    Returns:
        The config, and the run folder of `--resume RUN` if given; the run's config.yaml is then loaded first and the
        other arguments override it. `--resume auto` loads none and returns the path "auto".

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _config_parser(program, what, resumes=True)
    run_folder = next(reversed(list(_all_options("--resume", argv))), None)
    if run_folder is not None and run_folder != AUTO:
        if not run_folder:
            raise UserError("--resume is empty: name the folder of a run, such as runs/demo")
        refuse_url(run_folder, "a run")
        saved = Path(run_folder) / "config.yaml"
        if not saved.is_file():
            raise UserError(f"--resume {run_folder}: there is no {saved}; name the folder of a run, such as runs/demo")
        argv = [f"--config={saved}", *argv]
    values = parse(parser, Config, argv)
    resume = values.pop("resume", None)
    return Config.from_dict(values), None if resume is None else Path(resume)


@functools.cache  # building a parser takes a third of a second, and a program may parse several recipes
def _config_parser(program: str, what: str, *, resumes: bool = False, more: type | None = None) -> ArgumentParser:
    parser = _parser(program, what)
    parser.add_argument("--config", action="config", help="YAML recipe; if repeated, later ones override earlier.")
    if resumes:
        parser.add_argument(
            "--resume",
            metavar="RUN",
            help="Resume this run folder; auto resumes the run that this command line started, else starts a new one.",
        )
    if more is not None:
        parser.add_class_arguments(more, None)
    parser.add_class_arguments(Config, None)
    return parser


def _parser(prog: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False, description=description)


def parse_sampling(argv: Sequence[str], program: str = "sample.py") -> SampleConfig:
    """Parse the command line of `sample.py`.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _parser(program, "Generate text with a trained model.")
    words = ("interactive", "int8", "compile")
    parser.add_class_arguments(SampleConfig, None, as_positional=True, skip={*words})
    _add_words(parser, SampleConfig, *words)
    values = parse(parser, SampleConfig, argv)
    if values["prompt"] is None:  # jsonargparse parses the prompt "null" as None
        values["prompt"] = next(reversed(list(_all_options("--prompt", argv))), None)
    return SampleConfig(**values)


def change(config: GenerationConfig, settings: Mapping[str, Any], others: Iterable[str] = ()) -> GenerationConfig:
    """A copy of a config with single settings changed, given as strings (command line) or JSON values.

    Args:
        config: not modified.
        settings: by name.
        others: further valid keys, for suggestions.

    Raises:
        UserError: an unknown setting or an invalid value.
    """
    types = _field_types(GenerationConfig)
    for name in settings:
        if name not in types:
            known = [*others, *types]
            hint = _did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise UserError(f"unknown setting {name}{hint}")
    try:
        values = _plain(_generation_parser().parse_object(dict(settings), defaults=False))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_explain(str(error), set(types), types)) from None
    _refuse_nulls(values, types)
    return dataclasses.replace(config, **values)


@functools.cache
def _generation_parser() -> ArgumentParser:
    parser = _parser("settings", "")
    parser.add_class_arguments(GenerationConfig, None)
    return parser


def parse_inspecting(argv: Sequence[str], program: str) -> InspectConfig:
    """The command line of `minigpt inspect`.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _parser(program, "Show what the attention of a trained model does: a page, and a table of its heads.")
    parser.add_class_arguments(InspectConfig, None, as_positional=True)
    return InspectConfig(**parse(parser, InspectConfig, argv))


def parse_reporting(argv: Sequence[str], program: str) -> ReportConfig:
    """The command line of `minigpt report`.

    Raises:
        UserError: for anything that cannot be understood, naming it.
    """
    parser = _parser(program, "Make one HTML file of what a run left: losses, samples, attention.")
    parser.add_class_arguments(ReportConfig, None, as_positional=True)
    return ReportConfig(**parse(parser, ReportConfig, argv))


def _add_words(parser: ArgumentParser, schema: type, *names: str) -> None:
    """Add boolean flags (jsonargparse alone would require `--report true`), with the field's docstring as help."""
    described = {each.arg_name: each.description for each in docstring_parser.parse_from_object(schema).params}
    for name in names:
        parser.add_argument(f"--{name}", action="store_true", help=described[name])


def read_text(name: str, option: str) -> str:
    """Read a whole UTF-8 file, or standard input ('-').

    Raises:
        UserError: it cannot be read, naming the option and the file.
    """
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8")
    except OSError as error:
        raise UserError(f"{option} {name}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {name}: not UTF-8 text (byte {error.start})") from None


def parse_comparing(argv: Sequence[str], program: str) -> CompareConfig:
    """The command line of `minigpt compare`.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _parser(program, "Train recipes on the same text, seeds and budget, and make one table of them.")
    parser.add_argument("recipes", nargs="+", type=str, help="YAML recipes that differ in model or optimizer alone.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="Each recipe is trained with each seed.")
    parser.add_class_arguments(CompareConfig, None, skip={"recipes", "seeds"})
    return CompareConfig(**parse(parser, CompareConfig, argv))


def parse_proof(argv: Sequence[str], program: str) -> tuple[Config, ProofConfig]:
    """The command line of `minigpt prove-resume`.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _config_parser(
        program,
        "Train a config straight and with kills, compare everything; settings and recipes are those of train.py.",
        more=ProofConfig,
    )
    values = parse(parser, Config, argv, more=ProofConfig)
    asked = {field.name: values.pop(field.name) for field in dataclasses.fields(ProofConfig)}
    return Config.from_dict(values), ProofConfig(**asked)


def parse_data(argv: Sequence[str], program: str, what: str) -> Config:
    """The command line of `minigpt prepare` and `peek`: the settings of `minigpt train`, so one recipe serves all.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _config_parser(program, f"{what} Settings and recipes are those of train; data.* are what counts.")
    return Config.from_dict(parse(parser, Config, argv))


def require_command(name: str, known: Iterable[str], program: str, more: str = "") -> None:
    """Check that a word is one of a program's commands.

    Args:
        name: the word.
        known: the commands.
        program: its name, for the message.
        more: what follows a command, for the message.

    Raises:
        UserError: it is not.
    """
    if name not in known:
        raise UserError(
            f"{program} {name}".rstrip() + f": write {' or '.join(known)}{more}{_did_you_mean(name, known)}"
        )


def parse(parser: ArgumentParser, schema: type, argv: Sequence[str], *, more: type | None = None) -> dict[str, Any]:
    """Parse a command line into plain nested dictionaries, without the `config` option itself.

    Args:
        parser: with exit_on_error=False.
        schema: the dataclass whose (nested) fields are the options; used to explain mistakes.
        argv: the arguments, without the program's name.
        more: another dataclass whose fields are options, but not settings of a recipe.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    settings = _field_types(schema)
    types = settings | (_field_types(more) if more else {})
    options = {action.dest for action in parser._actions} | set(types)
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:  # Python decodes invalid bytes of arguments as lone surrogates
            raise UserError(f"the argument {argument!a} is not UTF-8 text") from None
    if "config" in options:
        for file in _all_options("--config", argv):
            check_yaml(file, options, settings)
    try:
        namespace = parser.parse_args(_with_literal_paths(argv, types))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_explain(str(error), options, types)) from None
    values = _plain(namespace)
    values.pop("config", None)
    _refuse_nulls(values, types)
    return values


def _with_literal_paths(argv: Sequence[str], types: Mapping[str, str]) -> list[str]:
    """Prefix ./ to existing paths that YAML would parse as a list, such as a folder named [texts]."""
    options = {f"--{name}" for name, kind in types.items() if kind.startswith("str | list[str]")}
    literal, before = list(argv), ""
    for i, argument in enumerate(argv):
        option, _, value = argument.partition("=") if "=" in argument else (before, "", argument)
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # not a path, or not YAML
            if option in options and isinstance(yaml.safe_load(value), list) and Path(value).exists():
                literal[i] = argument.removesuffix(value) + f"./{value}"
        before = argument
    return literal


def _refuse_nulls(values: dict[str, Any], types: dict[str, str], prefix: str = "") -> None:
    """Check for null in settings that do not take it: jsonargparse accepts a recipe's null for any type."""
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and types.get(key) == "group":
            _refuse_nulls(value, types, f"{key}.")
        elif value is None and key in types and not re.search("None|Any", types[key]):
            raise UserError(f"{key}=null: expected {_readable(types[key])}")


def check_yaml(file: str, options: set[str], settings: Iterable[str]) -> None:
    """Check that a recipe exists, is YAML, and has only known settings.

    Args:
        file: its path.
        options: all options of the command line, for suggestions.
        settings: the options that a recipe may set.

    Raises:
        UserError: naming file, line and key.
    """
    path = Path(file)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        recipes = sorted(Path("configs").glob("**/*.yaml"))
        namesake = next((p for p in recipes if p.name == path.name), None)
        close = difflib.get_close_matches(file, [str(p) for p in recipes], n=1)
        guess = namesake or next(iter(close), None)
        hint = f": did you mean {guess}?" if guess else ""
        if not hint and recipes:
            hint = f"; there are {', '.join(str(p) for p in recipes if len(p.parts) == 2)}"
        why = reason(error) if file else "needs the name of a file"
        raise UserError(f"--config {file}: {why}{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(root, yaml.MappingNode):
        found = "it holds no settings; " if root is None else ""
        raise UserError(f"{path}: {found}a recipe is a mapping such as 'model: {{n_layer: 6}}'")
    _check_keys(path, root, "", options, set(settings))


def _check_keys(path: Path, node: yaml.MappingNode, prefix: str, options: set[str], settings: set[str]) -> None:
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        where = f"{path}:{line}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{where}: a setting's name is one word, not a list or a mapping")
        key = f"{prefix}{key_node.value}"
        if key in lines:
            raise UserError(f"{where}: {key} was given already in line {lines[key]}: keep one of them")
        lines[key] = line
        if value_node.tag not in yaml.SafeLoader.yaml_constructors:
            raise UserError(f"{where}: {key} has the YAML tag {value_node.tag}: write a plain value")
        if key not in options:
            raise UserError(f"{where}: unknown setting {key}{_did_you_mean(key, options)}")
        if key not in settings and value_node.value != "null":  # --print_config writes `resume: null`
            raise UserError(f"{where}: {key} belongs on the command line, as --{key}, not in a recipe")
        if any(setting.startswith(f"{key}.") for setting in settings):
            if not isinstance(value_node, yaml.MappingNode):
                raise UserError(f"{where}: {key} is a group of settings: write 'name: value' lines under it")
            _check_keys(path, value_node, f"{key}.", options, settings)


def _all_options(name: str, argv: Sequence[str]) -> Iterator[str]:
    for i, argument in enumerate(argv):
        if argument.startswith(f"{name}="):
            yield argument[len(name) + 1 :]
        elif argument == name and i + 1 < len(argv):
            yield argv[i + 1]


def _field_types(schema: type, prefix: str = "") -> dict[str, str]:
    """Dotted field name -> its type as written in Python."""
    types: dict[str, str] = {}
    hints = get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        factory = field.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            types[prefix + field.name] = "group"
            types |= _field_types(factory, f"{prefix}{field.name}.")
        else:
            types[prefix + field.name] = type_name(hints[field.name])
    return types


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    return value


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    if not close:
        # A forgotten or wrong section: `n_layer` or `train.n_layer` for `model.n_layer`.
        last = name.rsplit(".", 1)[-1]
        close = [option for option in sorted(known) if option.rsplit(".", 1)[-1] == last][:1]
    return f": did you mean {close[0]}?" if close else ""


def _explain(message: str, options: set[str], types: dict[str, str]) -> str:
    """Turn jsonargparse's message into one line that names the option, its value and what is expected."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        word = match[1].split("=", 1)[0]
        if not word.startswith("-"):
            return f"cannot place the argument {word!r}: options are written --name value; see --help"
        if word.lstrip("-") in types:
            return f"{word.lstrip('-')} is positional: leave out {word}; see --help"
        guess = _did_you_mean(word.lstrip("-"), options).replace("did you mean ", "did you mean --")
        return f"unknown option {word}{guess or '; --help lists all'}"
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
        key = f"{match[1]}.{match[2]}"
        return f"unknown setting {key}{_did_you_mean(key, options)}"
    if match := re.match(r'Parser key "([^"]+)"(?: element \d+)?:', message):
        key = match[1]
        if types.get(key) == "group":
            return f"--{key} is a group of settings: write --{key}.name value, or the name of a YAML file with them"
        got = re.findall(r"(?:Got|Given) value: (.*)", message)
        if key in types and got:
            if nested := re.match(r"NestedArg\(key='([^']*)'", got[-1]):
                return f"unknown option --{key}.{nested[1]}: did you mean --{key}?"
            if "float" in types[key] and re.fullmatch(r"[-+]?\.?(nan|inf|infinity)", got[-1].lower()):
                return f"{key}={got[-1]}: must be a finite number"
            quotes = " (in YAML, a string that looks like another type needs quotes)" if "str" in types[key] else ""
            return f"{key}={got[-1]}: expected {_readable(types[key])}{quotes}"
    if match := re.search(r"the following arguments are required: (.*)", message):
        return f"{match[1]} is missing; see --help"
    if match := re.match(r"argument (--[^\s/]+)\S*: expected one argument", message):
        return f"{match[1]} needs a value (one that begins with '-' is written {match[1]}=-...)"
    return " ".join(message.split())


def _readable(annotation: str) -> str:
    """`Literal["a", "b"] | None` -> `a, b or null`; other types are shown as in Python."""
    annotation = (
        re.sub(r"Literal\[([^\]]*)\]", lambda m: m[1].replace(", ", " | "), annotation)
        .replace('"', "")
        .replace("'", "")
    )
    annotation = annotation.replace("dict[str, Any]", "{class_path: …, init_args: …}")
    words = [word.strip() for word in annotation.replace("None", "null").replace("bool", "true | false").split(" | ")]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
