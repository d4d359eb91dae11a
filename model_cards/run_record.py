"""`run.json`: what a training run was told, and where it ran. Written beside the model, read by the card."""

import dataclasses
import json
import platform
import subprocess
from collections.abc import Sized
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from model_cards.checkpoint_folder import RUN_RECORD
from modeling_cyclip import CyCLIPTrainingArguments


PACKAGES = ("cyclip", "torch", "transformers", "accelerate", "datasets", "tokenizers", "Pillow")

# What transformers' arguments say about the training itself. Those of CyCLIPTrainingArguments are recorded too, except
# for what only concerns logging.
INHERITED = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "gradient_checkpointing", "max_steps",
    "num_train_epochs", "seed", "tf32", "torch_compile", "warmup_ratio", "warmup_steps",
)  # fmt: skip
LOGGING = {"logging_steps", "remove_unused_columns", "hub_strategy", "per_device_eval_batch_size"}

# Always files on this machine, which globs may name.
FILES = {"train_file", "validation_file", "train_shards", "validation_shards"}


def write_run_record(
    model_arguments: Any, data_arguments: Any, training_args: CyCLIPTrainingArguments, train_dataset: Any
) -> None:
    r"""
    Writes `run.json` into the output folder of a training. Names of local files are kept without their folders, since
    the record may be published.

    Args:
        model_arguments (dataclass):
            Which model is trained.
        data_arguments (dataclass):
            On which pairs.
        training_args ([`CyCLIPTrainingArguments`]):
            How.
        train_dataset (`datasets.Dataset`):
            The pairs.
    """
    own = set(CyCLIPTrainingArguments.__annotations__) - LOGGING
    told = {name: value for name, value in training_args.to_sanitized_dict().items() if name in own | set(INHERITED)}
    record = {
        "model": _changed(model_arguments),
        "data": _changed(data_arguments),
        "training": {
            name: value
            for name, value in told.items()
            if value not in (None, "None") and (name in own or value is not False)
        },
        "base_model": _hub_id(getattr(model_arguments, "model_name_or_path", None)),
        "dataset": _hub_id(getattr(data_arguments, "dataset_name", None)),
        "training_pairs": len(train_dataset) if isinstance(train_dataset, Sized) else None,
        "processes": training_args.world_size,
        "hardware": _hardware(training_args.device),
        "environment": {"Python": platform.python_version()} | _versions(),
        "commit": _commit(),
    }
    output_dir = Path(training_args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / RUN_RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _changed(arguments: Any) -> dict[str, Any]:
    """What differs from the defaults."""
    values = {}
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if value != field.default:
            values[field.name] = _without_folders(value, field.name in FILES)
    return values


def _without_folders(value: Any, is_file: bool) -> Any:
    if isinstance(value, list):
        return [_without_folders(item, is_file) for item in value]
    if is_file or _is_local(value):
        return Path(value).resolve().name
    return value


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and Path(value).exists()


def _hub_id(name: str | None) -> str | None:
    return None if name is None or _is_local(name) else name


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of this repository, with `-dirty` where files differ from it; `None` outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
