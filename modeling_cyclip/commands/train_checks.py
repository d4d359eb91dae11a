"""Checks before a training: its folder, its evaluation, and whether its model can memorise a few pairs."""

import os
from pathlib import Path

from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..build_model import ModelArguments
from ..data.captions import DataArguments
from ..training_args import CyCLIPTrainingArguments


# The nano ViT of recipes/emoji.yaml finds all of 64 pairs after 300 steps.
STEPS = 300
# The recall@1 within a batch that counts as memorised.
MEMORISED_RECALL = 0.95


def check_evaluation(data_args: DataArguments, training_args: CyCLIPTrainingArguments) -> None:
    """Refuses a run that shall evaluate but has nothing to evaluate on."""
    sets = data_args.validation_file, data_args.validation_split, data_args.validation_shards, data_args.eval_zero_shot
    if training_args.eval_strategy != "no" and not any(sets):
        raise ValueError(
            "--eval_strategy needs pairs to evaluate on (--validation_file, --validation_split or --validation_shards) or "
            "--eval_zero_shot."
        )


def check_output_folder(model_args: ModelArguments, training_args: CyCLIPTrainingArguments) -> None:
    """
    Refuses to publish an adapter. Refuses a folder that cannot be written to, one with checkpoints of an earlier training
    that this one does not go on from, and one with a model where an adapter goes, or the reverse.
    """
    if model_args.saves_adapter and training_args.push_to_hub:
        raise ValueError("An adapter is no checkpoint to publish. Add --merge_lora, or leave out --push_to_hub.")
    folder = Path(training_args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be made: {error}.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--output_dir {folder} cannot be written to.")
    other = "config.json" if model_args.saves_adapter else "adapter_config.json"
    if not model_args.merge_lora and (folder / other).is_file():
        raise ValueError(
            f"{folder} has the {other} of another run: models and adapters in one folder are opened as one. Choose another "
            "--output_dir."
        )
    if training_args.resume_from_checkpoint is None and any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise ValueError(
            f"{folder} has checkpoints of an earlier training. Go on from the last of them with --resume_from_checkpoint, or "
            "start anew in another --output_dir."
        )


def set_up_overfit_check(train_dataset: Dataset, num_pairs: int, training_args: CyCLIPTrainingArguments) -> Dataset:
    """
    The pairs of the check: the first `num_pairs`, or all there are. Sets the arguments of the check: one batch of all
    pairs where they fit, `STEPS` steps or the `--max_steps` given, and a warm-up that fits into them. Nothing is
    evaluated, saved or published. Refuses fewer pairs than processes, or a single one.
    """
    pairs = train_dataset.select(range(min(num_pairs, len(train_dataset))))
    if len(pairs) < max(2, training_args.world_size):
        raise ValueError(
            f"--overfit_check needs two pairs, and one for each of {training_args.world_size} processes; there are "
            f"{len(pairs)}."
        )
    training_args.per_device_train_batch_size = min(
        training_args.per_device_train_batch_size, len(pairs) // training_args.world_size
    )
    if training_args.max_steps < 1:
        training_args.max_steps = STEPS
    training_args.warmup_steps = min(training_args.warmup_steps, training_args.max_steps // 10)
    training_args.logging_steps = max(1, training_args.max_steps // 20)
    training_args.eval_strategy = training_args.save_strategy = "no"
    training_args.load_best_model_at_end = training_args.push_to_hub = False
    return pairs


def overfit_report(log_history: list[dict[str, float]]) -> tuple[bool, str]:
    """Whether the pairs were memorised by the last log, and the words for it."""
    last = [log for log in log_history if "contrastive_loss" in log][-1]
    recall = min(last["image_to_text_recall@1"], last["text_to_image_recall@1"])
    found = (
        f"after {last['step']} steps the recall@1 within a batch is {100 * recall:.0f} %, the contrastive loss "
        f"{last['contrastive_loss']:.3f}, the loss {last['loss']:.3f}"
    )
    if recall >= MEMORISED_RECALL:
        return True, f"Overfit check passed: {found}. The model can memorise these pairs; more pairs can teach it."
    return False, (
        f"Overfit check failed: {found}. The model does not memorise these pairs. Look at the pairs themselves (equal "
        "images or captions cannot be told apart), then at --learning_rate, then at the cyclic weights: without them "
        "(--inmodal_cyclic_weight 0 --crossmodal_cyclic_weight 0) it should pass; --max_steps gives it more time."
    )
