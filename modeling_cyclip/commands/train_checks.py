"""Checks before a training: its folder, its evaluation, and whether its model can memorise a few pairs."""

import logging
import os
import shutil
from pathlib import Path

from datasets import Dataset
from filelock import FileLock, Timeout
from huggingface_hub import constants, get_token
from PIL import Image
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..arguments import check_name
from ..build_model import ModelArguments
from ..data.captions import FILE_FORMATS, DataArguments
from ..training_args import CyCLIPTrainingArguments
from ..training_log import LOSS_PARTS


logger = logging.getLogger(__name__)

# The operating system releases it with the last process that has the file open, on most network disks too.
LOCK = ".training.lock"
# Data workers outlive a killed training by some seconds, and hold its lock.
LOCK_SECONDS = 15

# The nano ViT of recipes/emoji.yaml finds all of 64 pairs after 300 steps.
STEPS = 300
# The recall@1 within a batch that counts as memorised.
MEMORISED_RECALL = 0.95

# What `datasets` opens in a folder besides images and tables.
ARCHIVES = {".arrow", ".tar", ".zip", ".gz", ".zst", ".bz2", ".xz", ".7z", ".py"}
# The largest share of the pairs that may sit out an epoch without a word.
SITTING_OUT = 0.2


def check_sources(model_args: ModelArguments, data_args: DataArguments) -> None:
    """Refuses what is neither here nor a name on the Hub, folders for files, and folders without images."""
    for args, names in (
        (model_args, ("model_name_or_path", "vision_model", "text_model", "config_name", "tokenizer_name")),
        (data_args, ("dataset_name", "eval_zero_shot")),
    ):
        for name in names:
            if (value := getattr(args, name)) is not None:
                check_name(value, f"--{name} {value}")
    for name in ("train_file", "validation_file"):
        files = getattr(data_args, name)
        for file in [files] if isinstance(files, str) else files or []:
            if (path := Path(file).expanduser()).is_dir():
                raise ValueError(f"--{name} takes a file, and {file} is a folder: take --dataset_name.")
            if not path.is_file():
                raise ValueError(f"--{name} {file}: there is no such file.")
    if data_args.dataset_name is not None and (folder := Path(data_args.dataset_name).expanduser()).is_dir():
        known = Image.registered_extensions().keys() | FILE_FORMATS.keys() | ARCHIVES
        if not any(path.suffix.lower() in known for path in folder.rglob("*")):
            raise ValueError(f"--dataset_name {folder}: no image, table or archive is in it or in a folder of it.")


def check_services(model_args: ModelArguments, training_args: CyCLIPTrainingArguments) -> None:
    """Refuses reporters that are not installed, and to publish an adapter, or without a network or a token."""
    installed = get_available_reporting_integrations()
    for name in training_args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"--report_to {name} is no reporter; installed are {', '.join(installed) or 'none'}, and others are "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK.keys() - set(installed)))}."
            )
        if name not in (*installed, "flyte"):  # which transformers never lists
            package = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}.get(name, name)
            raise ValueError(f"--report_to {name} needs a package that is not installed: pip install {package}")
    if training_args.push_to_hub:
        if model_args.saves_adapter:
            raise ValueError("An adapter is no checkpoint to publish. Add --merge_lora, or leave out --push_to_hub.")
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                "--push_to_hub cannot reach the Hub while HF_HUB_OFFLINE is set: unset that, or leave --push_to_hub out and "
                f"publish later, `cyclip publish {training_args.output_dir} user/name`."
            )
        if training_args.hub_token is None and get_token() is None:
            raise ValueError("--push_to_hub needs a token: log in with `hf auth login`, or set HF_TOKEN.")


def warn_of_pairs_left_out(num_pairs: int, batch_size: int, num_processes: int) -> None:
    """Says how many pairs fill no batch, where they are many, and which batch leaves out fewer."""
    left_out = num_pairs % batch_size
    if left_out > SITTING_OUT * num_pairs and num_pairs >= 4 * num_processes:
        # With one batch more.
        per_device = num_pairs // (num_pairs // batch_size + 1) // num_processes
        logger.warning(
            f"{left_out} of the {num_pairs} training pairs, others each time, sit out every epoch: a batch of {batch_size} "
            f"pairs leaves them over. --per_device_train_batch_size {per_device} leaves "
            f"{num_pairs % (per_device * num_processes)}."
        )


def warn_of_long_warm_up(training_args: CyCLIPTrainingArguments, num_steps: int) -> None:
    """Says where the warm-up takes all of the training's steps."""
    warm_up = training_args.get_warmup_steps(num_steps)
    if training_args.should_log and warm_up >= num_steps > 1:
        logger.warning(
            f"The warm-up has {warm_up} steps (--warmup_steps) and the training {num_steps}: the learning rate does not reach "
            "--learning_rate before the end. Set --warmup_steps to fewer, or to a share of the training below 1, such as 0.1."
        )


def check_evaluation(data_args: DataArguments, training_args: CyCLIPTrainingArguments) -> None:
    """Refuses a run that shall evaluate but has nothing to evaluate on, or choose its best by what nothing measures."""
    sets = data_args.validation_file, data_args.validation_split, data_args.validation_shards, data_args.eval_zero_shot
    if training_args.eval_strategy != "no" and not any(sets):
        raise ValueError(
            "--eval_strategy needs pairs to evaluate on (--validation_file, --validation_split or --validation_shards) or "
            "--eval_zero_shot."
        )
    best = training_args.metric_for_best_model
    if best is not None and training_args.eval_strategy != "no":
        measured = ["zero_shot_top1", "zero_shot_mean_per_class"] if data_args.eval_zero_shot else []
        if any(sets[:3]):
            measured = ["loss", *(name for name in LOSS_PARTS if name != "inmodal_contrastive_loss"), *measured]
        if best.removeprefix("eval_") not in measured:
            raise ValueError(
                f"--metric_for_best_model {best} is measured by no evaluation here; there are {', '.join(measured)}."
            )


def lock_output_folder(training_args: CyCLIPTrainingArguments) -> FileLock | None:
    """
    Makes the output folder, and keeps other trainings out of it until this process ends, however it ends. One process of
    several holds the lock. Refuses a folder that cannot be written to, or that another training writes to.
    """
    folder = Path(training_args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be made: {error}.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--output_dir {folder} cannot be written to.")
    if not training_args.should_save:
        return None
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ValueError(
            f"Another training writes to {folder}. Wait for its end, or choose another --output_dir."
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{folder} cannot be locked ({error}): see to it that no other training writes to it.")
    return lock


def check_output_folder(model_args: ModelArguments, training_args: CyCLIPTrainingArguments) -> None:
    """
    Refuses a folder with the model or the checkpoints of an earlier training, unless this
    one goes on from them or may replace them, and one with a model where an adapter goes, or the reverse.
    """
    if training_args.overwrite_output_dir and training_args.resume_from_checkpoint is not None:
        raise ValueError(
            "--overwrite_output_dir begins anew and --resume_from_checkpoint goes on: leave one of them out."
        )
    folder = Path(training_args.output_dir)
    other = "config.json" if model_args.saves_adapter else "adapter_config.json"
    if not model_args.merge_lora and (folder / other).is_file():
        raise ValueError(
            f"{folder} has the {other} of another run: models and adapters in one folder are opened as one. Choose another "
            "--output_dir."
        )
    if training_args.overwrite_output_dir or training_args.resume_from_checkpoint is not None:
        return
    if any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise ValueError(
            f"{folder} has checkpoints of an earlier training. Go on from the last of them with --resume_from_checkpoint, "
            "choose another --output_dir, or replace them with --overwrite_output_dir."
        )
    if any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)):
        raise ValueError(
            f"{folder} has a finished model. Choose another --output_dir, or replace it with --overwrite_output_dir."
        )


def remove_checkpoints(training_args: CyCLIPTrainingArguments) -> None:
    """Removes the checkpoints of an earlier training, from which this one could otherwise be resumed."""
    if training_args.should_save:
        for checkpoint in Path(training_args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(checkpoint)


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
    training_args.load_best_model_at_end = training_args.push_to_hub = training_args.checkpoint_on_signal = False
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
