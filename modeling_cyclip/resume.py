"""What a training that goes on from a checkpoint takes from it: all of its state, but the arguments of its new command."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .run_record import RUN_RECORD


logger = logging.get_logger(__name__)

# The optimizer's and the schedule's state has these.
OF_THE_CHECKPOINT = {
    "learning_rate", "vision_learning_rate", "text_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
}  # fmt: skip
# These do not change what is trained. Processes and pairs of each are compared by their product.
WITHOUT_EFFECT = {
    "attn_implementation", "checkpoint_on_signal", "gradient_cache_chunk_size", "gradient_checkpointing", "license",
    "merge_lora", "overwrite_output_dir", "per_device_train_batch_size", "save_dtype", "torch_compile",
}  # fmt: skip


def check_resumable(checkpoint: str | Path) -> None:
    """Raises a `ValueError` for a checkpoint that holds the weights alone."""
    if not any(Path(checkpoint).glob("optimizer*")):
        raise ValueError(
            f"{checkpoint} holds weights but no state of the optimizer (`save_only_model`): no training can go on from it. "
            "Start a new one from its weights, --model_name_or_path."
        )


def warn_of_changes(checkpoint: str | Path, record: dict[str, Any]) -> None:
    """Names the arguments and the data that are not those of the checkpoint's run, and which of both hold."""
    try:
        saved = json.loads(Path(checkpoint, RUN_RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:  # another Trainer's
        return
    before, now = _settings(saved), _settings(record)
    changes = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            changes.append(f"{name} was {old} and is {new} ({old if name in OF_THE_CHECKPOINT else new} holds)")
    if changes:
        logger.warning(f"The run that {checkpoint} is of was another: {', '.join(changes)}.")


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """What a run record says of the arguments and the data, in one dictionary."""
    told = {**record["model"], **record["data"], **record["training"]}
    settings = {name: value for name, value in told.items() if name not in WITHOUT_EFFECT}
    settings["pairs a step"] = record["training"]["per_device_train_batch_size"] * record["processes"]
    for name in ("training_pairs", "captions"):
        settings[name] = record.get(name)
    return settings
