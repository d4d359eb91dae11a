"""Trains CLIP, or another dual encoder, with cyclic consistency on image-caption pairs.

cyclip train --config cifar10
cyclip train --model_size small --train_file pairs.csv --output_dir out
"""

import logging
import math
import sys
from functools import partial
from typing import NoReturn

import datasets
import torch
import transformers
from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel, ProgressCallback
from transformers.trainer_utils import set_seed

from ..arguments import parse_with_config
from ..build_model import ModelArguments, build_model_and_processor
from ..checkpoints import CheckpointError, last_complete_checkpoint
from ..data.augment import SecondView
from ..data.captions import DataArguments, iterate_captions, load_captioned_datasets
from ..divergence import DivergenceError
from ..evaluation.during_training import ZeroShotMetrics
from ..hub.publish import PublishError
from ..machines import check_output_folder_of_machines, in_all_or_none
from ..modeling_cyclip import CyCLIPModel
from ..preemption import end_with_launcher, ignore_signals
from ..resume import find_checkpoint
from ..trainer import CyCLIPTrainer
from ..training_args import CyCLIPTrainingArguments
from .train_checks import (
    check_evaluation,
    check_output_folder,
    check_services,
    check_sources,
    lock_output_folder,
    overfit_report,
    remove_checkpoints,
    set_up_overfit_check,
    warn_of_long_warm_up,
    warn_of_pairs_left_out,
)


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, CyCLIPTrainingArguments]:
    """Which model, which pairs, and how to train."""
    dataclass_types = (ModelArguments, DataArguments, CyCLIPTrainingArguments)
    about = "Train CLIP, or another dual encoder, with cyclic consistency on image-caption pairs."
    return parse_with_config(dataclass_types, argv, about)


def main(argv: list[str] | None = None) -> None:
    try:
        run(argv)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command with --resume_from_checkpoint goes on from the last checkpoint.")
    except (CheckpointError, DivergenceError, ImportError) as error:  # ImportError: of an optimizer's package
        end_with_error(error)


def end_with_error(error: Exception) -> NoReturn:
    """Ends the process with one line, whatever the message of a library looks like."""
    sys.exit(f"error: {' '.join(str(error).split())}")


def run(argv: list[str] | None = None) -> None:
    end_with_launcher()
    model_args, data_args, training_args = parse_arguments(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    if training_args.should_log:
        # Not of all transformers, which tells each configuration in full.
        transformers.utils.logging.get_logger("transformers.trainer").setLevel(logging.INFO)
        logging.getLogger("modeling_cyclip").setLevel(logging.INFO)
    set_seed(training_args.seed)

    try:
        check_sources(model_args, data_args)
        if data_args.overfit_check is None:
            check_evaluation(data_args, training_args)
            check_services(model_args, training_args)
            if training_args.max_steps > 0:
                warn_of_long_warm_up(training_args, training_args.max_steps)
            check_output_folder_of_machines(training_args.output_dir, training_args.save_on_each_node)
            # Held until the process ends.
            lock = in_all_or_none(partial(lock_output_folder, training_args))  # noqa: F841
            in_all_or_none(partial(check_output_folder, model_args, training_args))
        # Without a checkpoint the training begins anew, so that one command line serves the first start and the next.
        resume_from = find_checkpoint(
            training_args.resume_from_checkpoint, training_args.output_dir, training_args.save_on_each_node
        )
        trainer = build_trainer(model_args, data_args, training_args, resume_from)
    except (ValueError, OSError) as error:  # OSError: what transformers raises of files, and the Hub of anything
        end_with_error(error)

    if data_args.overfit_check is not None:
        run_overfit_check(trainer)
    if training_args.overwrite_output_dir:
        remove_checkpoints(training_args)
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    except SystemExit:
        ignore_signals()
        end_processes(trainer)
        raise
    if model_args.merge_lora:
        trainer.merge()
    convert_weights(trainer.model, model_args.save_dtype)
    save_model(trainer)
    convert_weights(trainer.model, "float32")  # the weights as saved, evaluated in the precision of the training
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    if training_args.push_to_hub:
        convert_weights(trainer.model, model_args.save_dtype)  # saved once more
        try:
            trainer.push_to_hub()
        except PublishError as error:
            sys.exit(f"error: {error}")
    elif not model_args.saves_adapter:
        trainer.create_model_card()

    if trainer.is_world_process_zero():
        print(f"\nThe model is in {training_args.output_dir}. To use it:\n\n    {how_to_use(trainer)}\n")
    end_processes(trainer)


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: CyCLIPTrainingArguments,
    resume_from: str | None,
) -> CyCLIPTrainer:
    """Loads the pairs, builds the model, and hands both to the Trainer that fits."""
    if training_args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    with training_args.main_process_first(desc="loading the data"):
        train_dataset, eval_dataset = load_captioned_datasets(data_args)
    if data_args.overfit_check is not None:
        train_dataset = set_up_overfit_check(train_dataset, data_args.overfit_check, training_args)
    model, processor = build_model_and_processor(model_args, iterate_captions(train_dataset), resume_from)
    zero_shot = None
    if data_args.eval_zero_shot is not None:
        batch_size, num_workers = training_args.per_device_eval_batch_size, training_args.dataloader_num_workers
        with training_args.main_process_first(desc="loading the set for zero-shot evaluation"):
            zero_shot = ZeroShotMetrics(data_args.eval_zero_shot, processor, batch_size, num_workers)
    trainer_class = CyCLIPTrainer
    if model_args.lora_rank is not None:
        from ..lora import LoraTrainer  # it needs peft

        trainer_class = LoraTrainer
    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        extra_metrics=zero_shot,
        augment=SecondView(data_args.synonyms) if data_args.inmodal_contrastive else None,
        random_resized_crop=data_args.random_resized_crop,
        cyclic_terms=None if isinstance(model, CyCLIPModel) else model_args.cyclic_terms(),
        run_arguments={"model": model_args, "data": data_args},
    )
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(NamedProgress)
    if training_args.should_log and data_args.overfit_check is None:
        num_processes = training_args.world_size
        batch_size = training_args.per_device_train_batch_size * num_processes
        warn_of_pairs_left_out(len(train_dataset), batch_size, num_processes)
        if training_args.max_steps <= 0:
            num_steps = math.ceil(len(train_dataset) // batch_size * training_args.num_train_epochs)
            warn_of_long_warm_up(training_args, num_steps)
    if zero_shot is not None and trainer.is_fsdp_enabled:
        raise ValueError("--eval_zero_shot does not go with FSDP, which runs no tower by itself. Leave it out.")
    return trainer


class NamedProgress(ProgressCallback):
    """transformers' progress bars with a word about what makes progress."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("Training")

    def on_prediction_step(self, args, state, control, **kwargs):
        super().on_prediction_step(args, state, control, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("Evaluating", refresh=False)


def save_model(trainer: CyCLIPTrainer) -> None:
    """Saves the finished model and the log of its training."""
    output_dir = trainer.args.output_dir
    try:
        trainer.save_model(_internal_call=True)  # published later, with what belongs to it
        trainer.save_state()
    except Exception as error:  # torch and safetensors raise many kinds of errors when a disk is full
        checkpoint = last_complete_checkpoint(output_dir)
        whole = (
            "No checkpoint is whole" if checkpoint is None else f"The last checkpoint that is whole is {checkpoint}"
        )
        raise CheckpointError(
            f"The finished model could not be written to {output_dir}: {error}. {whole}. With space on the disk, the same "
            "command with --resume_from_checkpoint ends what is left."
        ) from error


def how_to_use(trainer: CyCLIPTrainer) -> str:
    """A line of Python that opens the saved model."""
    model, folder = trainer.model, trainer.args.output_dir
    if isinstance(model, CyCLIPModel) or type(model.config) in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING:
        return f'classify = transformers.pipeline("zero-shot-image-classification", model="{folder}")'
    return f'model = transformers.AutoModel.from_pretrained("{folder}")'


def convert_weights(model: PreTrainedModel, dtype: str) -> None:
    """Converts the weights in place, and with them what the saved configurations say of their precision."""
    dtype = getattr(torch, dtype)
    if dtype != model.dtype:
        model.to(dtype)
        for config in (model.config, model.config.text_config, model.config.vision_config):
            config.dtype = dtype


def run_overfit_check(trainer: CyCLIPTrainer) -> NoReturn:
    """Trains on the pairs of the check, reports, and exits with status 0 if they were memorised, or else 1."""
    trainer.train()
    memorised, report = overfit_report(trainer.state.log_history)
    if trainer.is_world_process_zero():
        print(f"\n{report}\n")
    end_processes(trainer)
    sys.exit(not memorised)


def end_processes(trainer: CyCLIPTrainer) -> None:
    """
    Closes the process group, since one still open at exit can abort the process after all its work. The wrapper of the
    model goes first: it would wait for the group's threads, and they for Python.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
