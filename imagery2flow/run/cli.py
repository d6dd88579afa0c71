"""From a stage's dataclass to its command line: flags with underscores, ``--config FILE.yaml``, unknown keys refused."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from imagery2flow.run.errors import InputError, first_sentence

Config = TypeVar("Config")
# What jsonargparse says of a value of the wrong type, and what we say instead.
WRONG_TYPE = re.compile(r'Parser key "(?P<flag>[\w.]+)"(?: element \d+)?: Expected an? (?P<kind>.+)\. Got value: (?P<value>.*)')
KINDS = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}


class OneLineParser(ArgumentParser):
    """Refuses bad flags with one sentence and status 2, without repeating the usage."""

    settings_file: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one sentence and ends."""
        sentence = WRONG_TYPE.sub(explain_type, " ".join(message.split()))
        if self.settings_file and ("is not accepted" in sentence or "parsing config" in sentence):
            sentence = f"--config {self.settings_file}: {sentence}"
        print(f"{self.prog}: error: {sentence}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any, append: bool = False) -> Any:
        """Takes one value in YAML for a list of one."""
        if action.nargs in ("*", "+") and value is not None and not isinstance(value, list):
            value = [value]
        return super()._check_value_key(action, value, key, cfg, append)


def explain_type(found: re.Match[str]) -> str:
    """The sentence for a value of the wrong type."""
    choices = re.match(r"typing\.Literal\[(.*)\]", found["kind"])
    kind = f"one of {choices[1]}" if choices else KINDS.get(found["kind"], found["kind"])
    return f"--{found['flag']} {found['value']} must be {kind}"


def text(value: object) -> str:
    """An item of a list of texts; YAML reads 3 as a number."""
    return str(value)


def parse_config(stage: str, config_class: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Reads YAML and flags into the dataclass of a stage; flags override YAML, YAML overrides the defaults.

    Args:
        stage: Name of the script, for messages.
        config_class: Dataclass of the stage's settings.
        argv: Command line without the program's name; default ``sys.argv[1:]``.

    Raises:
        SystemExit: With status 0 after ``--help``, with status 2 after one sentence about what is wrong.
    """
    parser = build_parser(stage, config_class)
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Both "--config FILE" and "--config=FILE".
    pairs = pairwise(
        part for argument in arguments for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])
    )
    parser.settings_file = next((value for flag, value in pairs if flag == "--config"), None)
    try:
        namespace = parser.parse_args(arguments)
    except (
        UnicodeError,
        RecursionError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # what the libraries below do not catch themselves
        if parser.settings_file is None:
            raise
        parser.error(f"--config {parser.settings_file} cannot be read as settings in YAML ({first_sentence(error)})")
    try:
        return to_dataclass(config_class, namespace, "settings")
    except InputError as error:
        parser.error(str(error))


def build_parser(stage: str, config_class: type[Any]) -> OneLineParser:
    """One flag per field of the dataclass; the help comes from the class's docstring."""
    docstring = parse_docstring(config_class.__doc__ or "")
    parser = OneLineParser(prog=stage, description=docstring.short_description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags override it.")
    add_fields(parser, config_class)
    return parser


def add_fields(parser: ArgumentParser, config_class: type[Any], prefix: str = "") -> None:
    """Adds a flag for every field; a field that is a dataclass itself becomes a group ``--field.name``."""
    types = typing.get_type_hints(config_class)
    explained = {
        parameter.arg_name: (parameter.description or "").replace("%", "%%")
        for parent in reversed(config_class.__mro__)
        for parameter in parse_docstring(parent.__doc__ or "").params
    }
    for item in dataclasses.fields(config_class):
        kind, name = types[item.name], prefix + item.name
        if dataclasses.is_dataclass(kind):
            add_fields(parser, typing.cast("type[Any]", kind), prefix=name + ".")
            continue
        options: dict[str, Any] = {"type": kind, "help": explained[item.name]}
        if item.default_factory is not dataclasses.MISSING:
            options["default"] = item.default_factory()
        elif item.default is not dataclasses.MISSING:
            options["default"] = item.default
        else:
            options["required"] = True
        if typing.get_origin(kind) is list:  # several values after one flag, as published: --schedule 90 110
            item_kind = typing.get_args(kind)[0]
            options.update(type=text if item_kind is str else item_kind, nargs="+" if "required" in options else "*")
        if kind is bool:  # both --cos and --cos true
            options.update(nargs="?", const=True)
        parser.add_argument(f"--{name}", **options)


def to_dataclass(config_class: type[Config], namespace: Namespace, name: str) -> Config:
    """Builds the dataclass, and those nested in it, from parsed values; ``name`` is what a message calls them.

    Raises:
        InputError: A value is out of range.
    """
    if not isinstance(namespace, Namespace):
        raise InputError(f"{name} {namespace} must be a group of settings")
    types = typing.get_type_hints(config_class)
    values = {
        item.name: to_dataclass(types[item.name], namespace[item.name], item.name)
        if dataclasses.is_dataclass(types[item.name])
        else namespace[item.name]
        for item in dataclasses.fields(typing.cast("Any", config_class))
    }
    return config_class(**values)
