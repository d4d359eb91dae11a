"""Whether a training may write into its output folder: asked before anything is read."""

import os
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_cyclip import CyCLIPTrainingArguments
from training.arguments import ModelArguments


def check_output_folder(model_args: ModelArguments, training_args: CyCLIPTrainingArguments) -> None:
    r"""
    Raises:
        `ValueError`: a folder that cannot be written to, one with the checkpoints of an earlier training that this one does
        not go on from, or with a model where an adapter goes, or the reverse.
    """
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
