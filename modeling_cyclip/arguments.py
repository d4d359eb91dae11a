"""Parses the command line and a YAML file into dataclasses, for every program that takes `--config`."""

import argparse
import difflib
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .package_files import find_file, package_file


# Arguments of transformers that `--help` explains, since most trainings set them.
ALWAYS_EXPLAINED = {
    "output_dir", "num_train_epochs", "max_steps", "warmup_steps", "bf16", "fp16", "seed", "use_cpu", "report_to",
    "dataloader_num_workers", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit",
    "resume_from_checkpoint", "push_to_hub", "hub_model_id",
}  # fmt: skip

# Names of open_clip, of the official CyCLIP code, of transformers' example and earlier versions, and of habit. Of several
# arguments that could be meant, those count that the program has.
OTHER_NAMES = {
    "accum_freq": "gradient_cache_chunk_size",
    "arch": "model_size",
    "batch": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "caption_key": "caption_column",
    "checkpoint": "model_name_or_path resume_from_checkpoint",
    "checkpoint_path": "model_name_or_path resume_from_checkpoint",
    "cpu": "use_cpu",
    "csv": "train_file dataset",
    "csv_caption_key": "caption_column",
    "csv_file": "train_file dataset",
    "csv_img_key": "image_column",
    "csv_separator": "delimiter",
    "cylambda1": "inmodal_cyclic_weight",
    "cylambda2": "crossmodal_cyclic_weight",
    "data": "train_file dataset_name dataset",
    "data_dir": "dataset_name dataset",
    "data_path": "train_file dataset_name dataset",
    "dataset": "dataset_name",
    "dataset_name": "dataset",
    "dataset_path": "dataset_name dataset",
    "epoch": "num_train_epochs",
    "epochs": "num_train_epochs",
    "eps": "adam_epsilon",
    "eval_batch_size": "per_device_eval_batch_size batch_size",
    "evaluation_strategy": "eval_strategy",
    "force_image_size": "image_size",
    "freeze_text_model": "freeze_text",
    "freeze_vision_model": "freeze_vision",
    "grad_checkpointing": "gradient_checkpointing",
    "grad_clip_norm": "max_grad_norm",
    "image_key": "image_column",
    "imagenet_val": "eval_zero_shot",
    "img_key": "image_column",
    "inmodal": "inmodal_contrastive",
    "lock_image": "freeze_vision",
    "lock_text": "freeze_text",
    "log_every_n_steps": "logging_steps",
    "logs": "output_dir",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "model": "model_name_or_path model_size",
    "model_name": "model_name_or_path model_size",
    "model_path": "model_name_or_path",
    "name": "run_name output_dir",
    "no_cuda": "use_cpu",
    "num_epochs": "num_train_epochs",
    "num_train_steps": "max_steps",
    "num_warmup_steps": "warmup_steps",
    "num_workers": "dataloader_num_workers",
    "out": "output_dir",
    "out_dir": "output_dir",
    "output": "output_dir",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "precision": "bf16 fp16 dtype",
    "pretrained": "model_name_or_path",
    "resume": "resume_from_checkpoint",
    "save_dir": "output_dir",
    "save_frequency": "save_steps",
    "steps": "max_steps",
    "synonyms_file": "synonyms",
    "tensorboard": "report_to",
    "tokenizer": "tokenizer_name",
    "torchcompile": "torch_compile",
    "train_batch_size": "per_device_train_batch_size",
    "train_csv": "train_file",
    "train_data": "train_file train_shards dataset_name",
    "train_num_samples": "max_train_samples",
    "val_data": "validation_file validation_shards",
    "val_file": "validation_file",
    "validation_data": "validation_file validation_shards",
    "wandb": "report_to",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "wd": "weight_decay",
    "webdataset": "train_shards dataset",
    "workers": "dataloader_num_workers num_workers",
}  # fmt: skip

_PROCESSES = "`cyclip train --num_processes 2 ...` starts two processes, one a GPU"
# Names without a counterpart, and what there is instead.
INSTEAD = {
    "aug_cfg": "its random crop is --random_resized_crop 0.9 1.0",
    "device": "a GPU is taken where there is one, and CUDA_VISIBLE_DEVICES says which",
    "device_id": "CUDA_VISIBLE_DEVICES says which GPU is taken",
    "device_ids": _PROCESSES,
    "distributed": _PROCESSES,
    "gather_with_grad": "gradients always flow to the pairs of all processes; leave it out",
    "gpu": "CUDA_VISIBLE_DEVICES says which GPU is taken",
    "gpus": _PROCESSES,
    "local_loss": "the loss is always that of the pairs of all processes; leave it out",
    "nproc_per_node": _PROCESSES,
    "num_gpus": _PROCESSES,
    "num_processes": _PROCESSES,
    "world_size": _PROCESSES,
}


def parse_with_config(
    dataclass_types: tuple[type, ...], argv: list[str] | None, description: str, recipes: str = "training/recipes"
) -> tuple:
    """
    An instance of each dataclass, from the command line (by default that of the process), the recipe that `--config`
    names, and the defaults, in this order of precedence. A mistake ends the process with one line about it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
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
            "--config",
            help="YAML file of arguments, or the name of a shipped recipe. The command line overrides it; "
            "--ARGUMENT none unsets what it says.",
        )
    _shorten_help(parser, dataclass_types, argv)
    config = config_parser.parse_known_args(argv)[0].config
    without_default = {action.dest for action in parser._actions if action.default is None and not action.required}
    unset = _take_unset(parser, argv)
    told = {}
    if config is not None:
        told = _read_config(parser, config, recipes, dataclass_types)
        told = {name: value for name, value in told.items() if name not in unset}
        parser.set_defaults(**told)
        # An argument in the file need not be on the command line.
        for action in parser._actions:
            action.required = action.required and action.default is None
    # Checked first: a misspelt argument would otherwise be reported as the missing one that it leaves unset.
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    _, unknown = parser.parse_known_args(argv)
    for action in required:
        action.required = True
    if unknown:
        _refuse_unknown(parser, argv, unknown[0], recipes)
    try:
        # The last namespace holds --config alone.
        *arguments, _ = parser.parse_args_into_dataclasses(argv)
    except json.JSONDecodeError as error:
        parser.error(f"{error.doc!r} is no JSON: {error}")
    except (ValueError, OSError) as error:
        typed = {_action(parser, word).dest for word in argv if _action(parser, word)}
        named = dict.fromkeys(re.findall(r"(?:--|`)(\w+)", str(error)))
        blamed = [name for name in named if name in told and name not in typed]
        said = ""
        if blamed:
            said = f" ({config} says {', '.join(f'{name}: {told[name]}' for name in blamed)}"
            said += "".join(f"; --{name} none unsets it" for name in blamed if name in without_default) + ")"
        parser.error(f"{error}{said}")
    return tuple(arguments)


def _action(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    """The argument that a word of the command line names."""
    return parser._option_string_actions.get(word.partition("=")[0])


def _is_unset(action: argparse.Action, value: str) -> bool:
    return action.default is None and not action.required and value.lower() in ("none", "null")


def _take_unset(parser: argparse.ArgumentParser, argv: list[str]) -> set[str]:
    """Takes `--NAME none` off the command line, for arguments that have no default. Returns their names."""
    unset = set()
    for position in reversed(range(len(argv))):
        name, equals, value = argv[position].partition("=")
        value = value if equals else "".join(argv[position + 1 : position + 2])
        if (action := _action(parser, name)) is not None and action.dest != "config" and _is_unset(action, value):
            unset.add(action.dest)
            del argv[position : position + (1 if equals else 2)]
    return unset


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


def _refuse_unknown(parser: argparse.ArgumentParser, argv: list[str], word: str, recipes: str) -> NoReturn:
    if word.startswith("-"):
        parser.error(f"there is no argument {word}{_did_you_mean(word, parser, '--')}")
    name, equals, value = word.partition("=")
    if equals and _action(parser, f"--{name}"):
        parser.error(f"{word} stands alone; did you mean --{name} {value}?")
    if Path(word).suffix == ".yaml" or any(package_file(recipes).glob(f"{word}.yaml")):
        parser.error(f"{word} stands alone; did you mean --config {word}?")
    before = [other for other in argv[: argv.index(word)] if _action(parser, other)]
    takes_one = f"; {before[-1]} takes one value" if before else ""
    parser.error(f"{word} stands alone: arguments are --ARGUMENT VALUE{takes_one}")


def _did_you_mean(name: str, parser: argparse.ArgumentParser, prefix: str) -> str:
    """What is there instead of an argument that is not, each with `prefix` before it."""
    names = {action.dest for action in parser._actions if action.dest not in ("help", "help_all")}
    name = name.lstrip("-").partition("=")[0].replace("-", "_").lower()
    meant = [other for other in OTHER_NAMES.get(name, "").split() if other in names]
    if not meant and name in INSTEAD:
        return f": {INSTEAD[name]}"
    # A worse likeness is mostly none.
    meant = meant or difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"; did you mean {' or '.join(prefix + other for other in meant)}?" if meant else ""


def _read_config(
    parser: argparse.ArgumentParser, name: str, recipes: str, dataclass_types: tuple[type, ...]
) -> dict[str, Any]:
    try:
        path = find_file(name, recipes, ".yaml", "recipe")
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {name} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"--config {path} must hold `argument: value` lines.")
    actions = {action.dest: action for action in parser._actions}
    if unknown := sorted({str(key) for key in values} - set(actions)):
        hint = _did_you_mean(unknown[0], parser, "")
        parser.error(f"--config {path} has arguments that do not exist: {', '.join(unknown)}{hint}")
    types = {name: kind for each in dataclass_types for name, kind in get_type_hints(each).items()}
    # As text, like on the command line: YAML takes `no` for false and 2024-05-05 for a date.
    written = {
        key.value: value.value
        for key, value in (yaml.compose(text, Loader=yaml.SafeLoader).value if values else ())
        if isinstance(value, yaml.ScalarNode)
    }
    told = {}
    for key, value in values.items():
        action = actions[key]
        # None, and `none`, are as if the line were not there.
        if value is None or _is_unset(action, written.get(key, "")):
            continue
        try:
            told[key] = _as_told(parser, action, value, written.get(key), types.get(key))
        except (argparse.ArgumentTypeError, argparse.ArgumentError, ValueError) as error:
            parser.error(f"--config {path}, {key}: {getattr(error, 'message', error)}")
    return told


def check_new_folder(folder: Path) -> None:
    """Raises a `FileExistsError` for what is there already, unless it is an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder.")


def check_name(value: str, said: str) -> None:
    """Raises a `ValueError`, which begins with what was `said`, for a name of nothing here that cannot be one on the Hub."""
    try:
        # Shards may be a pattern.
        if not Path(value).expanduser().exists() and not value.endswith(".tar"):
            validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(
            f"{said}: there is no such folder or file here, and no name on the Hub has this form (user/name)."
        ) from error


def _as_told(
    parser: argparse.ArgumentParser, action: argparse.Action, value: Any, written: str | None, kind: Any
) -> Any:
    """The value of an argument in a recipe in the form in which argparse takes a default. Raises what argparse raises."""
    kinds = {get_origin(each) or each for each in (get_args(kind) or (kind,))} | {get_origin(kind)}
    takes_list = action.nargs in ("+", "*")
    if isinstance(value, dict):
        if dict not in kinds:
            hint = ""
            if action.dest == "train_file":
                files, shares = (", ".join(map(str, words)) for words in (value, value.values()))
                hint = f". Shares stand by themselves: `train_file: [{files}]`, `source_weights: [{shares}]`"
            raise ValueError(f"takes {'a list' if takes_list else 'one value'}, got {value}{hint}.")
        return value
    if isinstance(value, list):
        if list not in kinds:
            raise ValueError(f"takes one value, got {value}")
        if nested := [each for each in value if isinstance(each, dict | list)]:
            hint = ""
            if action.dest in ("train_file", "validation_file"):
                hint = f" Rows with a source each stand in a file of their own, `{action.dest}: sources.yaml`."
            raise ValueError(f"takes a list of words, got {nested[0]} in it.{hint}")
        texts = list(map(str, value))
    else:
        text = str(value) if written is None or written.lower() in ("true", "false") else written
        texts = [{"on": "yes", "off": "no"}.get(text.lower(), text) if action.type is string_to_bool else text]
    converted = [parser._get_value(action, text) for text in texts]
    for each in converted:
        parser._check_value(action, each)
    return converted if isinstance(value, list) or takes_list else converted[0]
