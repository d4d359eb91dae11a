"""Arguments of [`CyCLIPTrainer`]."""

import inspect
import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from accelerate.utils import get_int_from_env
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_utils import HubStrategy
from transformers.training_args import SchedulerType
from transformers.utils import is_torch_xla_available, logging

from .machines import use_network_of_master


logger = logging.get_logger(__name__)

# More make batches faster than a GPU takes them, and each holds some of them in memory.
MAX_WORKERS = 16


@dataclass
class CyCLIPTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] for a contrastive loss. The defaults are the paper's optimizer: AdamW, learning
    rate 5e-4, weight decay 0.1, cosine schedule, no clipping. The weights of the cyclic terms belong to the model, see
    [`CyCLIPConfig`], or to the Trainer, see [`CyclicTerms`].

    Args:
        accelerator_config (`str`, `dict` or `AcceleratorConfig`, *optional*):
            accelerate's options. `None` is `{"non_blocking": True}`: batches in pinned memory are copied while the GPU computes.
        dataloader_num_workers (`int`, *optional*):
            Processes that make batches. `None` takes, where a GPU trains, as many as there are processor cores for each
            training process, 16 at most, and none where the CPU trains, which needs its cores.
        checkpoint_on_signal (`bool`, *optional*, defaults to `True`):
            Whether SIGTERM and SIGUSR1, which clusters send before they kill, lead to a checkpoint after the step that runs
            and to exit status 143, without what a script does after its training.
        cyclic_start_ratio (`float`, *optional*, defaults to 0.5):
            Share of the training, in [0, 1], that is CLIP's: both cyclic weights are zero.
        cyclic_warmup_ratio (`float`, *optional*, defaults to 0.5):
            Share of the training over which both cyclic weights then rise linearly from zero. With 0 for both, as in the
            paper, the weights are full from the first step, which can keep a small model from learning at all.
        gradient_cache_chunk_size (`int`, *optional*):
            Number of pairs embedded at once. The contrastive batch and its gradients stay exactly the same. The step
            needs the memory of a chunk and the time of one more forward pass. `None` embeds the whole batch at once.
        no_duplicate_captions (`bool`, *optional*, defaults to `True`):
            Whether to keep samples with the same caption out of one batch, where they would be negatives of each other.
            This needs a `datasets.Dataset` with enough different captions. If there are too few, a warning says so.
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of the patches, in [0, 1), that a training step leaves out of each image, others each time, to save time and
            memory ([FLIP](https://huggingface.co/papers/2212.00794)). The vision tower must be the ViT of a CLIP or a SigLIP.
            Evaluations read all patches, and so does the trained model.
        vision_learning_rate (`float`, *optional*):
            Peak learning rate of the vision tower and its projection. `None` takes `learning_rate`.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether `cyclip train` may replace the model and the checkpoints of an earlier training in `output_dir`.
        text_learning_rate (`float`, *optional*):
            Peak learning rate of the text tower and its projection. `None` takes `learning_rate`.
    """

    learning_rate: float = HfArg(default=5e-4, help="Peak learning rate (paper: 5e-4).")
    weight_decay: float = HfArg(default=0.1, help="Weight decay; norms, biases and logit_scale have none.")
    lr_scheduler_type: SchedulerType | str = HfArg(default="cosine", help="Learning rate schedule after the warm-up.")
    max_grad_norm: float = HfArg(default=0.0, help="Gradient clipping. 0, as in the paper, does not clip.")
    per_device_train_batch_size: int = HfArg(
        default=128, help="Pairs per device. The contrastive batch is this times the number of processes."
    )
    per_device_eval_batch_size: int | None = HfArg(
        default=None, help="Pairs per device in evaluation. Default: as in training, since eval_loss depends on it."
    )
    logging_steps: float = HfArg(default=10, help="Steps between two logs (below 1: a share of the run).")
    hub_strategy: HubStrategy | str = HfArg(
        default="end",
        help="With --push_to_hub: end publishes the finished model, and every_save each saved one, too. checkpoint and "
        "all_checkpoints add what resuming needs: optimizer states, which are pickles.",
    )
    dataloader_num_workers: int | None = HfArg(
        default=None,
        help="Processes that make batches (default: where a GPU trains, the cores there are for it, 16 at most; else none).",
    )
    remove_unused_columns: bool = HfArg(default=False, help="Must stay off: the collator reads image and caption.")
    logging_nan_inf_filter: bool = HfArg(
        default=False, help="Must stay off: a loss that is not finite ends the training, and is not hidden."
    )
    ddp_find_unused_parameters: bool | None = HfArg(
        default=False, help="Search for parameters without a gradient in each step. No model that trains here has any."
    )
    checkpoint_on_signal: bool = HfArg(
        default=True, help="On SIGTERM or SIGUSR1, save a checkpoint and end with status 143."
    )
    cyclic_start_ratio: float = HfArg(
        default=0.5, help="Share of the training without cyclic terms, before their weights rise (paper: 0)."
    )
    cyclic_warmup_ratio: float = HfArg(
        default=0.5, help="Share of the training over which the cyclic weights rise linearly from zero (paper: 0)."
    )
    gradient_cache_chunk_size: int | None = HfArg(
        default=None, help="Pairs embedded at once: the memory of these, but the gradients of the whole batch."
    )
    no_duplicate_captions: bool = HfArg(default=True, help="Keep two samples with the same caption out of one batch.")
    patch_dropout: float = HfArg(
        default=0.0,
        help="Share of the patches that a training step leaves out of each image, to save time (FLIP: 0.5).",
    )
    vision_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of the vision tower (default: --learning_rate)."
    )
    text_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of the text tower (default: --learning_rate)."
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="Replace the model and the checkpoints of an earlier training in --output_dir."
    )

    def __getstate__(self) -> dict:
        # transformers pickles the arguments beside each model, as training_args.bin.
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        if not (self.use_cpu or torch.accelerator.is_available() or is_torch_xla_available()):
            # transformers takes the CPU by itself, but with bf16 it wants to be told.
            self.use_cpu = True
            if self.bf16:
                logger.warning_once(
                    "torch sees no GPU or other accelerator: bf16 training runs on the CPU. If that has no instructions for "
                    "bf16 (AVX512-BF16, AMX), --bf16 false is several times as fast."
                )
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        if self.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            raise ValueError(
                "DeepSpeed is not supported: shard a model that is too large for a device by FSDP instead."
            )
        has_own_config = self.accelerator_config is not None
        is_default = self.dataloader_num_workers is None
        if is_default:
            self.dataloader_num_workers = 0  # transformers compares it with numbers
        use_network_of_master()
        super().__post_init__()
        if not has_own_config:
            self.accelerator_config.non_blocking = self.dataloader_pin_memory
        if is_default and self.device.type != "cpu":
            cores = (
                len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
            )
            processes = get_int_from_env(["LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS"], 1)
            self.dataloader_num_workers = min(MAX_WORKERS, max(1, cores // processes))
            if self.process_index == 0:
                logger.info(f"{self.dataloader_num_workers} workers make the batches of each process.")
        if self.per_device_train_batch_size < 1 or self.per_device_eval_batch_size < 1:
            raise ValueError("`per_device_train_batch_size` and `per_device_eval_batch_size` must be at least 1.")
        if self.per_device_train_batch_size * self.world_size == 1:
            raise ValueError(
                "A batch of one pair has no negatives, so its loss is 0 whatever the model: set `per_device_train_batch_size` "
                "to 2 at least (the paper's is 128)."
            )
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(
                f"`num_train_epochs` is {self.num_train_epochs:g} and `max_steps` is not set: there is no step to train."
            )
        if self.dataloader_num_workers < 0:
            raise ValueError(f"`dataloader_num_workers` must be at least 0, got {self.dataloader_num_workers}.")
        if self.learning_rate < 0:
            raise ValueError(f"`learning_rate` must be at least 0, got {self.learning_rate}.")
        _check_schedule(SchedulerType(self.lr_scheduler_type), self.lr_scheduler_kwargs or {}, self.learning_rate)
        start, warmup = self.cyclic_start_ratio, self.cyclic_warmup_ratio
        if not (start >= 0 and warmup >= 0 and start + warmup <= 1 + 1e-9):
            raise ValueError(
                "`cyclic_start_ratio` and `cyclic_warmup_ratio` are shares of the training, of together at most 1, got "
                f"{start} and {warmup}. Each is 0.5 unless it is set."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` must stay off: the collator reads the columns image and caption."
            )
        if self.logging_nan_inf_filter:
            raise ValueError(
                "`logging_nan_inf_filter` must stay off: it replaces a loss that is not finite by earlier ones."
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` ends an interrupted training as if it were finished: leave it out. "
                "`checkpoint_on_signal`, which is on, saves a checkpoint on SIGTERM and ends with status 143."
            )
        if self.gradient_accumulation_steps > 1:
            raise ValueError(
                "`gradient_accumulation_steps` would split the contrastive batch and shrink the number of negatives. Set "
                "`per_device_train_batch_size` to the batch that the loss should see, and "
                "`gradient_cache_chunk_size` to the pairs that fit into memory at once."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` would shrink the contrastive batch. Keep the batch, and set "
                "`gradient_cache_chunk_size` to the pairs that fit into memory at once."
            )
        if self.label_smoothing_factor != 0:
            raise ValueError("`label_smoothing_factor` has no effect: the loss belongs to the model.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"`train_sampling_strategy` must be 'random', got {self.train_sampling_strategy!r}: what meets in a batch "
                "are each other's negatives."
            )
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(
                f"`patch_dropout` is a share of the patches, at least 0 and below 1, got {self.patch_dropout}."
            )
        if self.gradient_cache_chunk_size is not None and self.gradient_cache_chunk_size < 1:
            raise ValueError(f"`gradient_cache_chunk_size` must be at least 1, got {self.gradient_cache_chunk_size}.")
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started > 1 and self.world_size != started:
            raise ValueError(
                f"{started} processes were started (WORLD_SIZE), but accelerate finds no way for them to train together on "
                f"{self.device.type}: each would train alone, on the same pairs. Start one process, or add --use_cpu."
            )


def _check_schedule(schedule: SchedulerType, kwargs: dict[str, Any], learning_rate: float) -> None:
    # transformers makes the schedule after the data are loaded, and leaves the arguments of a constant one unread.
    takes = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[schedule]).parameters.keys()
    takes -= {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    if "kwargs" not in takes and (unknown := sorted(kwargs.keys() - takes)):
        raise ValueError(
            f"`lr_scheduler_kwargs` has {unknown[0]!r}, and `lr_scheduler_type` {schedule.value} takes "
            f"{', '.join(sorted(takes)) or 'none'}."
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], learning_rate)
    try:
        get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=2, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` {kwargs} do not fit `lr_scheduler_type` {schedule.value}: {error}"
        ) from error
