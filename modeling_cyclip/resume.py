"""What a training that goes on from a checkpoint takes from it: all of its state, but the arguments of its new command."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.utils import logging

from .checkpoints import check_checkpoint, last_complete_checkpoint
from .machines import in_all_or_none, num_machines
from .run_record import RUN_RECORD


logger = logging.get_logger(__name__)

# The state of the optimizer, the schedule, the model and the tokenizer has these.
OF_THE_CHECKPOINT = {
    "adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "model_name_or_path", "text_learning_rate", "tokenizer_name",
    "vision_learning_rate", "vocab_size", "weight_decay",
}  # fmt: skip
# With another of these, the state of the model or the optimizer does not fit.
UNCHANGEABLE = {
    "config_name", "freeze_text", "freeze_vision", "image_size", "model_size", "patch_size", "text_model", "vision_model",
}  # fmt: skip
# These do not change what is trained. Processes and pairs of each are compared by their product.
WITHOUT_EFFECT = {
    "attn_implementation", "checkpoint_on_signal", "dataloader_num_workers", "gradient_cache_chunk_size",
    "gradient_checkpointing", "license", "merge_lora", "overwrite_output_dir", "per_device_train_batch_size", "save_dtype",
    "torch_compile",
}  # fmt: skip


class FoundCheckpoint(str):
    """The path of a checkpoint that [`find_checkpoint`] has read from end to end, so that it need not be read again."""


def find_checkpoint(
    resume_from_checkpoint: str | bool | None, output_dir: str, save_on_each_node: bool = False
) -> FoundCheckpoint | None:
    """
    The checkpoint that the argument means, the same in all processes, which all call this: a path, or the newest whole one
    in `output_dir` for `True`; `None` if there is none, or none is meant. With `save_on_each_node` it is whole on every
    machine. Raises a `ValueError` for one that does not exist, is not whole, or holds the weights alone.
    """
    if isinstance(resume_from_checkpoint, FoundCheckpoint):
        return resume_from_checkpoint
    meant = str(resume_from_checkpoint or "False")
    if meant.lower() == "false":
        return None
    if meant.lower() != "true":
        in_all_or_none(partial(_check_named, meant, save_on_each_node))
        return FoundCheckpoint(meant)
    not_everywhere: set[str] = set()
    while (checkpoint := _newest(output_dir, not_everywhere)) is not None and save_on_each_node:
        try:
            in_all_or_none(partial(_check_on_other_machine, checkpoint))
            break
        except ValueError as error:
            if PartialState().is_main_process:
                logger.warning(f"{checkpoint} is passed over, since another machine does not have it whole: {error}")
            not_everywhere.add(checkpoint)
    if checkpoint is None and save_on_each_node and num_machines() > 1:
        _refuse_to_begin_anew(output_dir)
    return None if checkpoint is None else FoundCheckpoint(checkpoint)


def _newest(output_dir: str, leave_out: set[str]) -> str | None:
    """The newest whole checkpoint of the first process's machine, in all processes."""

    def find() -> str | None:
        # One process reads it: others may see an older state of a network disk, and a checkpoint has gigabytes.
        if not PartialState().is_main_process:
            return None
        logger.info(
            f"Looking for a checkpoint in {output_dir} to go on from. It is read from end to end, to see that it is whole."
        )
        found = last_complete_checkpoint(output_dir, leave_out)
        if found is not None:
            _check_optimizer(found)
        return found

    return broadcast_object_list([in_all_or_none(find)])[0]


def _check_named(checkpoint: str, save_on_each_node: bool) -> None:
    state = PartialState()
    if state.is_main_process and Path(checkpoint).is_dir():
        logger.info(f"{checkpoint} is read from end to end, to see that it is whole.")
    if state.is_main_process or (save_on_each_node and state.is_local_main_process):
        _check(checkpoint)
    elif state.is_local_main_process and not Path(checkpoint).is_dir():
        raise ValueError(
            f"The checkpoint {checkpoint} is not on every machine: put it on a disk that all machines share."
        )


def _check_on_other_machine(checkpoint: str) -> None:
    state = PartialState()
    if state.is_local_main_process and not state.is_main_process:
        _check(checkpoint)


def _refuse_to_begin_anew(output_dir: str) -> None:
    """Of machines with disks of their own, one that was replaced has no checkpoint, and a new start would delete the others'."""
    # One process of a machine reads them, as they have gigabytes.
    if any(gather_object([PartialState().is_local_main_process and last_complete_checkpoint(output_dir) is not None])):
        raise ValueError(
            f"No checkpoint in {output_dir} is whole on every machine, but some machines have one. Copy it to the others, or "
            "begin anew: --overwrite_output_dir in place of --resume_from_checkpoint."
        )


def _check(checkpoint: str) -> None:
    check_checkpoint(checkpoint)
    _check_optimizer(checkpoint)


def _check_optimizer(checkpoint: str) -> None:
    if not any(Path(checkpoint).glob("optimizer*")):
        raise ValueError(
            f"{checkpoint} holds weights but no state of the optimizer (`save_only_model`): no training can go on from it. "
            "Start a new one from its weights, --model_name_or_path."
        )


def compare_runs(checkpoint: str, record: dict[str, Any]) -> None:
    """
    Names the arguments and the data that are not those of the checkpoint's run, and which of both hold. Raises a
    `ValueError` where the checkpoint's state does not fit the new arguments.
    """
    try:
        before = _settings(json.loads(Path(checkpoint, RUN_RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # another Trainer's, or another program's
        return
    now = _settings(record)
    changes = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        # A tower has parameter groups of its own if it has a rate of its own.
        if name in UNCHANGEABLE or (name.endswith("_learning_rate") and None in (old, new)):
            raise ValueError(
                f"{checkpoint} is of a run whose {name} was {old}, and here it is {new}: its state does not fit. Resume with the "
                "arguments of that run, or start a new one from its weights, --model_name_or_path."
            )
        changes.append(f"{name} was {old} and is {new} ({old if name in OF_THE_CHECKPOINT else new} holds)")
    if changes:
        logger.warning(f"The run that {checkpoint} is of was another: {', '.join(changes)}.")


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """What a run record says of the arguments and the data, in one dictionary."""
    told = {**record["model"], **record["data"], **record["training"]}
    settings = {name: value for name, value in told.items() if name not in WITHOUT_EFFECT}
    settings["pairs a step"] = record["training"]["per_device_train_batch_size"] * record["processes"]
    settings["training_pairs"], settings["captions"] = record["training_pairs"], record["captions"]
    # Records before version 0.1.0 lack these, which were then always these.
    settings["cyclic_max_gradient_share"] = record.get("cyclic_max_gradient_share")
    settings.update(record.get("cyclic_terms", {}))
    settings.setdefault("cyclic_start_ratio", 0.0)
    settings.setdefault("patch_dropout", 0.0)
    return settings
