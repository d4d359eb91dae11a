"""Writes `run.json`: what a training was told and where it ran. It lies beside the model, and the card reads it."""

import dataclasses
import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Sized
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from .configuration_cyclip import CyclicTerms
from .data.sampler import is_table
from .dual_encoder import terms_of
from .training_args import CyCLIPTrainingArguments


RUN_RECORD = "run.json"

PACKAGES = ("cyclip", "torch", "transformers", "accelerate", "datasets", "tokenizers", "Pillow")

# These arguments of transformers describe the training itself. Those of CyCLIPTrainingArguments are recorded too, except
# for those that only concern logging.
INHERITED = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "gradient_checkpointing", "max_steps",
    "num_train_epochs", "seed", "tf32", "torch_compile", "warmup_ratio", "warmup_steps",
)  # fmt: skip
LOGGING = {"logging_steps", "remove_unused_columns", "hub_strategy", "per_device_eval_batch_size"}

# These arguments always name files on this machine, perhaps by globs.
FILES = {"train_file", "validation_file", "train_shards", "validation_shards"}


def run_record(
    training_args: CyCLIPTrainingArguments,
    trained_model: PreTrainedModel,
    train_dataset: Dataset | None,
    *,
    model: Any = None,
    data: Any = None,
) -> dict[str, Any]:
    """
    The content of `run.json`. The dataclasses `model` and `data` are the command's arguments. A script has none: then the
    record takes from the model and the pairs what they know, and leaves out the rest. Local files are named without their
    folders, since the record may be published.
    """
    own = set(CyCLIPTrainingArguments.__annotations__) - LOGGING
    terms = terms_of(trained_model)
    base_model = trained_model.name_or_path if model is None else getattr(model, "model_name_or_path", None)
    return {
        "model": {} if model is None else _changed(model),
        "data": {} if data is None else _changed(data),
        "training": {
            name: value
            for name, value in training_args.to_sanitized_dict().items()
            if value not in (None, "None") and (name in own or (name in INHERITED and value is not False))
        },
        "base_model": _hub_id(base_model),
        "dataset": _hub_id(getattr(data, "dataset_name", None)),
        # Not what was told, but what holds: it may be the checkpoint's.
        "cyclic_max_gradient_share": terms.cyclic_max_gradient_share,
        # Those of a CyCLIPModel stand in its config.json.
        **({"cyclic_terms": dataclasses.asdict(terms)} if isinstance(terms, CyclicTerms) else {}),
        "training_pairs": len(train_dataset) if isinstance(train_dataset, Sized) else None,
        **_images_and_captions(train_dataset),
        "captions": _caption_digest(train_dataset),
        "processes": training_args.world_size,
        "hardware": hardware(training_args.device),
        "environment": versions(),
        "commit": commit(),
    }


def write_run_record(output_dir: str | Path, record: dict[str, Any]) -> None:
    """Writes a record as `run.json` into the folder that the model is saved in."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    Path(output_dir, RUN_RECORD).write_text(text, encoding="utf-8")


def _caption_digest(dataset: Dataset | None) -> str | None:
    """A short hash of 1,000 captions all over a table, by which other data show."""
    if not is_table(dataset) or "caption" not in dataset.column_names:
        return None
    rows = range(0, len(dataset), max(1, len(dataset) // 1000))
    captions = dataset.with_format(None).select_columns("caption").select(rows)[:]["caption"]
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:12]


def _images_and_captions(dataset: Dataset | None) -> dict[str, int]:
    """How many images and captions a table has. A row may have several captions, and several rows the file of one image."""
    if not is_table(dataset) or not {"image", "caption"} <= set(dataset.column_names) or len(dataset) == 0:
        return {}
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Image, List

    captions, images = dataset.select_columns("caption"), dataset.select_columns("image")
    found = {"training_images": len(dataset), "training_captions": len(dataset)}
    if isinstance(dataset.features["caption"], List):
        batches = captions.with_format("arrow").iter(10_000)
        found["training_captions"] = sum(
            pc.sum(pc.list_value_length(batch["caption"])).as_py() or 0 for batch in batches
        )
    elif isinstance(dataset.features["image"], Image):
        images = images.cast_column("image", Image(decode=False)).with_format("arrow")
        if images[0]["image"][0]["bytes"].as_py() is None:
            paths = [pc.struct_field(batch["image"], "path").combine_chunks() for batch in images.iter(10_000)]
            found["training_images"] = pc.count_distinct(pa.chunked_array(paths)).as_py()
    return found


def _changed(arguments: Any) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    told = [(field.name, getattr(arguments, field.name), field.default) for field in dataclasses.fields(arguments)]
    return {
        # JSON does not know infinity.
        name: "inf" if value == math.inf else _without_folders(value, name in FILES)
        for name, value, default in told
        if value != default
    }


def _without_folders(value: Any, is_file: bool) -> Any:
    if isinstance(value, list):
        return [_without_folders(item, is_file) for item in value]
    if isinstance(value, dict):
        return {name: _without_folders(item, is_file) for name, item in value.items()}
    return Path(value).resolve().name if isinstance(value, str) and (is_file or _is_local(value)) else value


def _is_local(value: Any) -> bool:
    # What an absolute path names may be gone by now.
    return isinstance(value, str) and (value.startswith(("/", "~/")) or Path(value).exists())


def _hub_id(name: str | None) -> str | None:
    return None if not name or _is_local(name) else name


def hardware(device: torch.device) -> str:
    """The name of a GPU, or the kind of the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'})"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a figure may depend on."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str | None:
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
