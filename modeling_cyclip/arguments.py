"""Command line and YAML file to dataclasses: one parser for every program that takes `--config`."""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .package_files import find_file


def parse_with_config(
    dataclass_types: tuple[type, ...], argv: list[str] | None, description: str, recipes: str = "training/recipes"
) -> tuple:
    """
    The arguments of the command line, over those of `--config`, over the defaults, in dataclasses. `--config` takes a YAML
    file, or the name of one in `recipes`.
    """
    argv = sys.argv[1:] if argv is None else argv
    # The usage of all arguments would push what an error says off the screen.
    usage = "%(prog)s [--config FILE.yaml] [--ARGUMENT VALUE ...]    (all arguments: --help)"
    parser = HfArgumentParser(dataclass_types, allow_abbrev=False, description=description, usage=usage)
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", True
            action.type = lambda text: text.lower() == "true" or text
            action.help = "Go on from the last complete checkpoint of --output_dir, or from the one given."
        if action.type is dict:
            action.type = json.loads
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for adding in (parser, config_parser):
        adding.add_argument(
            "--config", help="YAML file of arguments, or the name of a shipped one; the command line overrides it."
        )
    config = config_parser.parse_known_args(argv)[0].config
    if config is not None:
        try:
            path = find_file(config, recipes, ".yaml", "recipe")
        except ValueError as error:
            parser.error(f"--config: {error}")
        parser.set_defaults(**_read_config(parser, path))
        # What the file gives needs no place on the command line.
        for action in parser._actions:
            action.required = action.required and action.default is None
    # First, since what a misspelt argument leaves unset would be complained of instead.
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"there is no argument {unknown[0]}{_did_you_mean(unknown[0], parser._option_string_actions)}")
    try:
        # The last namespace holds --config alone.
        *arguments, _ = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    return tuple(arguments)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path} cannot be read: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {path} must hold `argument: value` lines.")
    takes_list = {action.dest: action.nargs in ("+", "*") for action in parser._actions}
    if unknown := sorted(set(values) - set(takes_list)):
        hint = _did_you_mean(unknown[0], takes_list)
        parser.error(f"--config {path} has arguments that do not exist: {', '.join(unknown)}{hint}")

    def as_told(name: str, value: Any) -> Any:
        if takes_list[name]:
            return value if isinstance(value, list | None) else [value]
        # As on the command line, where the parser checks what a value is.
        return str(value) if isinstance(value, int | float) else value

    return {name: as_told(name, value) for name, value in values.items()}
