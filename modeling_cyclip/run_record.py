"""`run.json`: what a training run was told, and where it ran. Saved beside the model, read by the card."""

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Sized
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from .data.sampler import is_table
from .training_args import CyCLIPTrainingArguments


RUN_RECORD = "run.json"

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
    output_dir: str | Path,
    training_args: CyCLIPTrainingArguments,
    trained_model: PreTrainedModel,
    train_dataset: Dataset | None,
    *,
    model: Any = None,
    data: Any = None,
) -> None:
    r"""
    Writes `run.json` into a folder that a model is saved in. Names of local files are kept without their folders, since
    the record may be published. What a script of one's own does not say is taken from the model and the data where they
    know it, and else left out.

    Args:
        output_dir (`str` or `Path`):
            The folder.
        training_args ([`CyCLIPTrainingArguments`]):
            How the model is trained.
        trained_model ([`~transformers.PreTrainedModel`]):
            The model.
        train_dataset (`datasets.Dataset` or `torch.utils.data.Dataset`, *optional*):
            The pairs.
        model (dataclass, *optional*):
            Arguments that say which model is trained.
        data (dataclass, *optional*):
            Arguments that say on which pairs.
    """
    own = set(CyCLIPTrainingArguments.__annotations__) - LOGGING
    told = {name: value for name, value in training_args.to_sanitized_dict().items() if name in own | set(INHERITED)}
    base_model = trained_model.name_or_path if model is None else getattr(model, "model_name_or_path", None)
    dataset = _source(train_dataset) if data is None else _hub_id(getattr(data, "dataset_name", None))
    record = {
        "model": {} if model is None else _changed(model),
        "data": {} if data is None else _changed(data),
        "training": {
            name: value
            for name, value in told.items()
            if value not in (None, "None") and (name in own or value is not False)
        },
        "base_model": _hub_id(base_model or None),
        "dataset": dataset,
        "training_pairs": len(train_dataset) if isinstance(train_dataset, Sized) else None,
        "processes": training_args.world_size,
        "hardware": _hardware(training_args.device),
        "environment": {"Python": platform.python_version()} | _versions(),
        "commit": _commit(),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    Path(output_dir, RUN_RECORD).write_text(text, encoding="utf-8")


def _source(dataset: Dataset | None) -> str | None:
    """The name of the dataset on the Hub that a table was loaded from, if all of it comes from one."""
    if not is_table(dataset):
        return None
    matches = [re.match(r"hf://datasets/([^@]+)@", url) for url in dataset.info.download_checksums or ()]
    names = {match[1] if match else None for match in matches}
    return names.pop() if len(names) == 1 else None


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
    checkout = Path(__file__).parents[1]
    # An installed package may lie within somebody else's.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
