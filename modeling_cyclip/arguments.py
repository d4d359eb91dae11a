"""Parses the command line and a YAML file into dataclasses, for every program that takes `--config`."""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import yaml
from transformers import HfArgumentParser

from .package_files import find_file


# Arguments of transformers that `--help` explains, since most trainings set them.
ALWAYS_EXPLAINED = {
    "output_dir", "num_train_epochs", "max_steps", "warmup_steps", "bf16", "fp16", "seed", "use_cpu", "report_to",
    "dataloader_num_workers", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit",
    "resume_from_checkpoint", "push_to_hub", "hub_model_id",
}  # fmt: skip


def parse_with_config(
    dataclass_types: tuple[type, ...], argv: list[str] | None, description: str, recipes: str = "training/recipes"
) -> tuple:
    """
    An instance of each dataclass, from the command line (by default that of the process), the recipe that `--config`
    names, and the defaults, in this order of precedence. A mistake ends the process with one line about it.
    """
    argv = sys.argv[1:] if argv is None else argv
    # argparse's own usage lists all arguments and would push the error message off the screen.
    usage = "%(prog)s [--config RECIPE] [--ARGUMENT VALUE ...]    (all arguments: --help)"
    parser = HfArgumentParser(
        dataclass_types, allow_abbrev=False, description=description, usage=usage, formatter_class=_HelpFormatter
    )
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", True
            action.type = lambda text: text.lower() == "true" or text
            action.help = "Go on from the last complete checkpoint of --output_dir, or from the one given."
        if action.type is dict:
            action.type = json.loads
        if action.option_strings[0].startswith("--no_") and action.const is False:
            action.help = argparse.SUPPRESS  # only another spelling of `--NAME false`
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for adding in (parser, config_parser):
        adding.add_argument(
            "--config", help="YAML file of arguments, or the name of a shipped recipe. The command line overrides it."
        )
    _shorten_help(parser, dataclass_types, argv)
    config = config_parser.parse_known_args(argv)[0].config
    if config is not None:
        parser.set_defaults(**_read_config(parser, config, recipes))
        # An argument in the file need not be on the command line.
        for action in parser._actions:
            action.required = action.required and action.default is None
    # Checked first: a misspelt argument would otherwise be reported as the missing one that it leaves unset.
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"there is no argument {unknown[0]}{_did_you_mean(unknown[0], parser._option_string_actions)}")
    try:
        # The last namespace holds --config alone.
        *arguments, _ = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    return tuple(arguments)


def _shorten_help(parser: argparse.ArgumentParser, dataclass_types: tuple[type, ...], argv: list[str]) -> None:
    """Moves the explanation of inherited arguments, more than a hundred in TrainingArguments, to `--help_all`."""
    inherited = {field.name for kind in dataclass_types for field in fields(kind)}
    inherited -= {name for kind in dataclass_types for name in kind.__annotations__} | ALWAYS_EXPLAINED
    if not inherited:
        return
    parser.add_argument("--help_all", action="help", help="Explain the arguments of TrainingArguments, too.")
    if "--help_all" in argv:
        return
    for action in parser._actions:
        if action.dest in inherited:
            action.help = argparse.SUPPRESS
    parser.epilog = (
        "The other arguments of transformers' TrainingArguments are taken as well (--help_all explains them): "
        f"{', '.join(sorted(inherited))}."
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows one spelling of each argument, the kind of its value, and its default unless that is empty."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return ", ".join(action.option_strings)
        kind = {int: "INT", float: "FLOAT", json.loads: "JSON"}.get(action.type, "TEXT")
        if action.nargs == "?":
            kind = "BOOL" if action.const is True and action.dest != "resume_from_checkpoint" else "PATH"
        return f"{action.option_strings[0]} {self._format_args(action, kind)}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        is_said = "default:" in action.help or action.default in (None, False, argparse.SUPPRESS, [], {})
        return action.help if is_said else super()._get_help_string(action)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_config(parser: argparse.ArgumentParser, name: str, recipes: str) -> dict:
    try:
        path = find_file(name, recipes, ".yaml", "recipe")
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {name} cannot be read: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {path} must hold `argument: value` lines.")
    takes_list = {action.dest: action.nargs in ("+", "*") for action in parser._actions}
    if unknown := sorted(set(values) - set(takes_list)):
        hint = _did_you_mean(unknown[0], takes_list)
        parser.error(f"--config {path} has arguments that do not exist: {', '.join(unknown)}{hint}")

    def as_told(name: str, value: Any) -> Any:
        if takes_list[name]:
            return value if isinstance(value, list | None) else [value]
        # As text, like on the command line, so that the parser checks the value.
        return str(value) if isinstance(value, int | float) else value

    return {name: as_told(name, value) for name, value in values.items()}
