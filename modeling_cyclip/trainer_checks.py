"""Refuses, before any work, what [`CyCLIPTrainer`] would not train, or would train otherwise than was asked for."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from .configuration_cyclip import CyclicTerms
from .data.samples import check_columns
from .dual_encoder import check_dual_encoder, has_sigmoid_loss
from .modeling_cyclip import CyCLIPModel
from .patch_dropout import find_patches
from .training_args import CyCLIPTrainingArguments


def check_trainer(
    model: nn.Module,
    args: CyCLIPTrainingArguments,
    datasets: Iterable[Dataset | None],
    processor: Any,
    cyclic_terms: CyclicTerms | None,
    has_views: bool,
    options: Mapping[str, Any],
) -> None:
    """Refuses, before any work, what would not train or would not train what was asked for."""
    if is_compiled_module(model):
        raise ValueError(
            "CyCLIPTrainer was given a compiled model, whose checkpoints would have other names: pass the model itself and "
            "`torch_compile=True` in the arguments."
        )
    check_dual_encoder(model)
    if isinstance(model, CyCLIPModel) and cyclic_terms is not None:
        raise ValueError(
            "`cyclic_terms` are for models whose configuration has none: those of a CyCLIPModel stand in its `config`, such as "
            "`config.inmodal_cyclic_weight`."
        )
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ValueError(
            f"A {type(model).__name__} has no gradient checkpointing: `gradient_cache_chunk_size` bounds the memory of a step, too."
        )
    if has_views and has_sigmoid_loss(model):
        raise ValueError(
            f"`augment` adds an in-modal contrastive term, a softmax, and a {type(model).__name__} has the sigmoid loss: train "
            "it without second views."
        )
    for parameter in model.parameters():
        if parameter.requires_grad and torch.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"The weights to train are in {str(parameter.dtype).removeprefix('torch.')}, in which small steps are lost "
                "to rounding. Open the checkpoint with `from_pretrained(..., dtype=torch.float32)`; `bf16=True` computes in half "
                "precision all the same."
            )
    if isinstance(processor, PreTrainedTokenizerBase | BaseImageProcessor):
        raise ValueError(
            f"`processing_class` is a {type(processor).__name__} alone: pass the tokenizer and the image processor of the "
            "model together, `CLIPProcessor(image_processor, tokenizer)`."
        )
    if not isinstance(args, CyCLIPTrainingArguments):
        raise ValueError(f"CyCLIPTrainer takes CyCLIPTrainingArguments, got {type(args).__name__}.")
    if args.patch_dropout > 0:
        found = find_patches(model)
        if found is None:
            raise ValueError(
                f"`patch_dropout` leaves out patches of a CLIP's or a SigLIP's ViT, and a {type(model).__name__} with this vision "
                "tower has none of them: leave it out."
            )
        num_patches = found[0].num_patches
        if round(args.patch_dropout * num_patches) == 0:
            raise ValueError(
                f"`patch_dropout` {args.patch_dropout} leaves out none of the {num_patches} patches of an image: take "
                f"{1 / num_patches:.2g} or more."
            )
        if not any(parameter.requires_grad for parameter in model.vision_model.parameters()):
            raise ValueError(
                "`patch_dropout` is for a vision tower that trains, and this one is frozen: it would only see less of the images. "
                "Leave it out."
            )
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
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, each of which would see only its own negatives. Start one "
            f"process a GPU, `accelerate launch --num_processes {args.n_gpu} SCRIPT ...`, or show one GPU only, "
            "`CUDA_VISIBLE_DEVICES=0`."
        )
    # On CPU, `accelerate launch` sets the address of a process group but starts only one process.
    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if launched_on_cpu and "MASTER_ADDR" in os.environ and args.world_size == 1:
        raise ValueError(
            "`accelerate launch --cpu` was asked for several processes but starts one. Launch them with `torchrun "
            "--nproc_per_node N SCRIPT ... --use_cpu`."
        )
