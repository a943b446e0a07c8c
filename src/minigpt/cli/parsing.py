"""Parses command lines and YAML recipes into validated configs.

jsonargparse does the parsing; this module turns its errors into one line that names key, value and remedy. It imports
nothing heavy, so mistakes are reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from minigpt.cli.recipes import check_recipe, did_you_mean, find_recipe, recipes
from minigpt.config import AUTO, DEFAULT_BUDGET, Config, GenerationConfig
from minigpt.config.checks import type_name
from minigpt.errors import UserError
from minigpt.files import refuse_url

T = TypeVar("T")


def parse_training(
    argv: Sequence[str],
    program: str = "minigpt train",
    what: str = "Train a GPT on your text.",
    *,
    resumes: bool = True,
    more: type | None = None,
) -> tuple[Config, *tuple[Any, ...]]:
    """Parse the command line of `minigpt train`, or of a command with the same settings and recipes.

    Args:
        argv: recipes, then options.
        program: name in --help.
        what: description in --help.
        resumes: take `--resume RUN`: the run's config.yaml is loaded first, and the arguments override it.
        more: another dataclass whose fields are options, but not settings of a recipe.

    Returns:
        The config; with `resumes` the run folder of `--resume`, or None; with `more` its instance.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = _kept_parser(program, what, resumes=resumes, more=more, helps=_asks_for_help(argv))
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    options = [_without_keyword(word) for word in argv[len(named) :]]
    words = [*(f"--config={find_recipe(name)}" for name in named), *_joined(parser, options)]
    run = _given(words).get("--resume") if resumes else None
    if run is not None and run != AUTO:
        if not run:
            raise UserError("--resume is empty: name the folder of a run, such as runs/demo")
        refuse_url(run, "a run")
        if "--initial_weights" in _given(words):
            raise UserError(f"--from and --resume {run}: a resumed run has its own weights; leave one out")
        saved = Path(run) / "config.yaml"
        if not saved.is_file():
            raise UserError(f"--resume {run}: there is no {saved}; name the folder of a run, such as runs/demo")
        words = [f"--config={saved}", *words]
    values = _parse(parser, words, Config, more)
    values.pop("resume", None)
    if resumes and run in {None, AUTO}:
        _plan(parser, words, values)
    asked = more and more(**{field.name: values.pop(field.name) for field in dataclasses.fields(more)})
    folder = None if run is None else Path(run)
    others: list[Any] = [*([folder] if resumes else []), *([asked] if more else [])]
    return (Config.from_dict(values), *others)


def _without_keyword(word: str) -> str:
    """An option whose name is a keyword of Python, which no field can have, by the name of its field."""
    for name, field in {"--from": "--initial_weights", "--for": "--for_device"}.items():
        if word == name or word.startswith(f"{name}="):
            return field + word.removeprefix(name)
    return word


def _plan(parser: ArgumentParser, words: Sequence[str], values: dict[str, Any]) -> None:
    """Name the settings that a budget, or `--from`, may choose: those in no argument and no recipe.

    A text of one's own without a recipe and without a length of the run gets the default budget.
    """
    options = {word.partition("=")[0] for word in words}
    length = {"--trainer.max_steps", "--trainer.max_time", "--trainer.overfit_batches", "--trainer.fast_dev_run"}
    if "--data.source" in options and values["budget"] is None and not options & {"--config", *length}:
        values["budget"] = DEFAULT_BUDGET
    if (values["budget"], values["initial_weights"]) != (None, None):  # a run's own config.yaml gives everything
        given = parser.parse_args(list(words), defaults=False)
        values["planned"] = [key for key, kind in settings_of(Config).items() if kind != "group" and key not in given]


def parse_options(
    argv: Sequence[str], schema: type[T], program: str = "minigpt", what: str = "", several: Sequence[str] = ()
) -> T:
    """Parse the command line of a command whose options are the fields of a dataclass, as `options_parser` has them.

    Raises:
        UserError: invalid arguments, naming the one.
    """
    parser = options_parser(schema, program, what, several)
    words = _joined(parser, argv)
    given, values = _given(words), _parse(parser, words, schema)
    for name, kind in settings_of(schema).items():
        if values[name] is None and kind == "str | None":  # jsonargparse takes the text "null" for None
            values[name] = given.get(f"--{name}")
    return schema(**values)


def config_parser(
    program: str, what: str, *, resumes: bool = False, more: type | None = None, helps: bool = True
) -> ArgumentParser:
    """The parser of a command that takes recipes and the settings of a run.

    `helps`: with each setting's line of help, which is looked for in the source; that takes a third of the time.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=helps)
    names = ", ".join(sorted(name for name, path in recipes().items() if path.parent.name != "attention"))
    parser = ArgumentParser(
        prog=program,
        usage=f"{program} [RECIPE ...] [--SECTION.NAME VALUE ...]",
        description=f"{what} RECIPE is a YAML file or a name: {names}. Later arguments override earlier ones.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A recipe by name or path, as RECIPE; may be repeated.")
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


_kept_parser = functools.cache(config_parser)  # to build it takes a fifth of a second, and recipes may be many


def _asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the words ask for the lines of help: --help, or --print_config=comments."""
    return any(word == "-h" or word.startswith(("--help", "--print_")) for word in argv)


def option_names() -> set[str]:
    """The dotted names of all that a training's command line sets: the settings, and what is turned into them."""
    own = {"help", "config", "print_config", "resume"}
    parser = _kept_parser("minigpt train", "Train a GPT on your text.", resumes=True, more=None, helps=False)
    return {action.dest for action in parser._actions if action.option_strings} - own - _groups(Config)


def _groups(schema: type) -> set[str]:
    return {name for name, kind in settings_of(schema).items() if kind == "group"}


def options_parser(schema: type, program: str, what: str, several: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a command whose options are the fields of a dataclass; `several` take one or more words each."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False, description=what)
    helps = {each.arg_name: each.description for each in docstring_parser.parse_from_object(schema).params}
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in several:
        factory, kind = fields[name].default_factory, get_args(get_type_hints(schema)[name])[0]
        if factory is dataclasses.MISSING:
            parser.add_argument(name, nargs="+", type=kind, help=helps[name])
        else:
            parser.add_argument(f"--{name}", nargs="+", type=kind, default=factory(), help=helps[name])
    words = [name for name, field in fields.items() if field.metadata.get("word")]
    for name in words:  # optional positional arguments
        parser.add_argument(name, nargs="?", type=str, default=fields[name].default, help=helps[name])
    flags = [name for name, field in fields.items() if field.type == "bool"]  # jsonargparse alone: `--int8 true`
    repeated = [name for name, field in fields.items() if field.metadata.get("repeated")]
    parser.add_class_arguments(schema, None, as_positional=True, skip={*flags, *several, *repeated, *words})
    for name in repeated:
        parser.add_argument(f"--{name}", action="append", type=str, default=[], help=helps[name])
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=helps[name])
    return parser


_kept_options_parser = functools.cache(options_parser)  # `change` is called for each line of a file of prompts


def change(config: GenerationConfig, settings: Mapping[str, Any], others: Iterable[str] = ()) -> GenerationConfig:
    """A copy of a config with single settings changed, given as strings (command line) or JSON values.

    Args:
        config: not modified.
        settings: by name.
        others: further valid keys, for suggestions.

    Raises:
        UserError: an unknown setting or an invalid value.
    """
    types = settings_of(GenerationConfig)
    for name in settings:
        if name not in types:
            known = [*others, *types]
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise UserError(f"unknown setting {name}{hint}")
    try:
        parser = _kept_options_parser(GenerationConfig, "settings", "")
        values = _plain(parser.parse_object(dict(settings), defaults=False))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_explain(str(error), set(types), types)) from None
    _refuse_nulls(values, types)
    return dataclasses.replace(config, **values)


def _parse(parser: ArgumentParser, joined: Sequence[str], schema: type, more: type | None = None) -> dict[str, Any]:
    """Parse `_joined` words into plain nested dictionaries; a recipe may have the fields of `schema`, not of `more`."""
    settings = settings_of(schema)
    types = settings | (settings_of(more) if more else {})
    options = {action.dest for action in parser._actions} | set(types)
    words = []
    for word in joined:
        try:
            word.encode()
        except UnicodeEncodeError:  # Python decodes invalid bytes of arguments as lone surrogates
            raise UserError(f"the argument {word!a} is not UTF-8 text") from None
        option, _, value = word.partition("=")
        if option == "--config" and "=" in word and "config" in options:
            path = find_recipe(value, "--config ")
            check_recipe(path, options, settings)
            words.append(f"--config={path}")
        else:
            words.append(_with_literal_path(word, types))
    try:
        values = _plain(parser.parse_args(words))
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_explain(str(error), options, types)) from None
    values.pop("config", None)
    _refuse_nulls(values, types)
    return values


def _joined(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The arguments with each option and its one value in one word, --name=value."""
    valued = {option for action in parser._actions if action.nargs is None for option in action.option_strings}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in valued and (not word.startswith("-") or " " in word):  # as argparse tells them
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _given(joined: Iterable[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in joined if "=" in word)


def _with_literal_path(word: str, types: Mapping[str, str]) -> str:
    """Prefix ./ to an existing path that YAML would parse as a list, such as a folder named [texts]."""
    option, _, value = word.partition("=")
    if types.get(option.removeprefix("--"), "").startswith("str | list[str]"):
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # not a path, or not YAML
            if isinstance(yaml.safe_load(value), list) and Path(value).exists():
                return f"{option}=./{value}"
    return word


def _refuse_nulls(values: dict[str, Any], types: dict[str, str], prefix: str = "") -> None:
    """Check for null in settings that do not take it: jsonargparse accepts a recipe's null for any type."""
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and types.get(key) == "group":
            _refuse_nulls(value, types, f"{key}.")
        elif value is None and key in types and not re.search("None|Any", types[key]):
            raise UserError(f"{key}=null: expected {_readable(types[key])}")


def settings_of(schema: type, prefix: str = "") -> dict[str, str]:
    """Dotted field name -> its type as written in Python."""
    types: dict[str, str] = {}
    hints = get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        factory = field.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            types[prefix + field.name] = "group"
            types |= settings_of(factory, f"{prefix}{field.name}.")
        else:
            types[prefix + field.name] = type_name(hints[field.name])
    return types


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    return value


def _explain(message: str, options: set[str], types: dict[str, str]) -> str:
    """Turn jsonargparse's message into one line that names the option, its value and what is expected."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        word = match[1].split("=", 1)[0]
        if not word.startswith("-"):
            return f"cannot place the argument {word!r}: options are written --name value; see --help"
        if word.lstrip("-") in types:
            return f"{word.lstrip('-')} is positional: leave out {word}; see --help"
        guess = did_you_mean(word.lstrip("-"), options).replace("did you mean ", "did you mean --")
        return f"unknown option {word}{guess or '; --help lists all'}"
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
        key = f"{match[1]}.{match[2]}"
        return f"unknown setting {key}{did_you_mean(key, options)}"
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
