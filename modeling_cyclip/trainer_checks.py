"""What [`CyCLIPTrainer`] refuses, before work starts."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainingArguments

from .modeling_cyclip import CyCLIPModel
from .samples import check_columns
from .training_args import CyCLIPTrainingArguments


def check_trainer(
    model: nn.Module, args: TrainingArguments, datasets: Iterable[Dataset | None], options: Mapping[str, Any]
) -> None:
    r"""
    Args:
        model (`nn.Module`):
            What is to be trained.
        args ([`~transformers.TrainingArguments`]):
            The arguments.
        datasets (`Iterable[Dataset]`):
            The training set and those of evaluation.
        options (`Mapping`):
            What else goes to transformers' Trainer.

    Raises:
        `ValueError`: another model or other arguments than CyCLIP's, rows that cannot be read by index or have other
        columns, options without effect, or fewer pairs in the contrastive batch than was asked for.
    """
    if not isinstance(model, CyCLIPModel):
        raise ValueError(
            f"CyCLIPTrainer trains a CyCLIPModel, got a {type(model).__name__}. Open a CLIP checkpoint with "
            "`CyCLIPModel.from_pretrained(...)`."
        )
    if not isinstance(args, CyCLIPTrainingArguments):
        raise ValueError(f"CyCLIPTrainer takes CyCLIPTrainingArguments, got {type(args).__name__}.")
    for dataset in datasets:
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "CyCLIPTrainer reads rows by index, which an IterableDataset has not: pass a `datasets.Dataset`, such as "
                "`load_dataset` gives without `streaming=True`."
            )
        check_columns(dataset)
    for unused in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
        if options.get(unused) is not None:
            raise ValueError(
                f"CyCLIPTrainer has no use for `{unused}`: the loss belongs to the model, and evaluation computes no logits. "
                "Metrics of your own go into `extra_metrics`."
            )
    optimizer, _ = options.get("optimizers", (None, None))
    if optimizer is not None and (args.vision_learning_rate, args.text_learning_rate) != (None, None):
        raise ValueError(
            "`vision_learning_rate` and `text_learning_rate` are for the optimizer that CyCLIPTrainer makes: give your own "
            "optimizer parameter groups at those rates."
        )
    _check_processes(args)


def _check_processes(args: CyCLIPTrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, each of which would see only its own negatives. Start one "
            f"process a GPU, `accelerate launch --num_processes {args.n_gpu} SCRIPT ...`, or show one GPU only, "
            "`CUDA_VISIBLE_DEVICES=0`."
        )
    # On CPU `accelerate launch` sets the address of a process group, and starts one process without it.
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if launched_on_cpu and "MASTER_ADDR" in os.environ and args.world_size == 1:
        raise ValueError(
            "`accelerate launch --cpu` was asked for several processes but starts one. Launch them with `torchrun "
            "--nproc_per_node N SCRIPT ... --use_cpu`."
        )
