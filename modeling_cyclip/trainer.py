"""transformers' Trainer with one contrastive batch per step and the parts of the loss in the log."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from accelerate.utils.memory import clear_device_cache
from huggingface_hub import CommitInfo, HfApi, ModelCard
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    HubStrategy,
    SaveStrategy,
    TrainOutput,
)
from transformers.utils import PushInProgress, logging

from .checkpoints import (
    CheckpointError,
    flush,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    mark_incomplete,
    remove_incomplete,
    rotate_checkpoints,
)
from .configuration_cyclip import CyclicTerms
from .data.augment import check_area
from .data.data_collator import CyCLIPDataCollator
from .data.sampler import EpochSampler, make_train_sampler
from .data.samples import Augment, BrokenImages, CaptionedSamples, SampleCollator
from .data.tokenizer import context_length, padding_of
from .divergence import DivergenceError, FirstBadStep, first_not_finite
from .dual_encoder import check_embeddings, has_sigmoid_loss, load_weights, train_with_terms
from .fsdp import fit_optimizer_state, prepare_for_fsdp, with_logit_scale_of
from .gradient_cache import cached_step
from .health import HealthCallback, caption_keys
from .machines import check_output_folder_of_machines, num_machines, saving_on_each_machine
from .modeling_cyclip import CyCLIPModel, CyCLIPOutput
from .optimizer import ClampLogitScale, decay_parameter_names, set_tower_learning_rates
from .patch_dropout import patch_dropout
from .preemption import PreemptionCallback, start_worker
from .resume import compare_runs, find_checkpoint
from .run_record import run_record, write_run_record
from .trainer_checks import check_trainer
from .training_args import CyCLIPTrainingArguments
from .training_log import (
    AVERAGED,
    CYCLIC_LOSSES,
    WeightedMean,
    batch_figures,
    is_log_due,
    over_all_parts,
    seconds_before,
)


logger = logging.get_logger(__name__)


class CyCLIPTrainer(Trainer):
    r"""
    Trains a [`CyCLIPModel`], or another dual encoder of transformers, on image-caption pairs.

    Any model trains that has `get_image_features`, `get_text_features` and `logit_scale`: its loss is CLIP's contrastive loss, or
    SigLIP's if it has a `logit_bias`, and the cyclic terms. What is saved is a checkpoint of the model's own class.

    A log shows the loss and its three parts (unweighted, averaged since the last log), `logit_scale` (the multiplier), the
    learning rate and the gradient's norm at that step. Cyclic terms that the loss does not need one by one, for their weights
    are zero, or equal in a batch above 1.5 times the embeddings' dimension, are those of the last batch.
    `cyclic_gradient_factor` is by how much `cyclic_max_gradient_share` lowered the cyclic weights. Of the last batch it
    shows image-to-text and text-to-image recall@1, the mean pairwise cosines of images and of captions, and the share of
    repeated captions. A warning says once if these show that the training goes wrong. `broken_images` counts the rows left
    out so far; a warning names each of them. An evaluation reports `eval_loss` and its parts, with full cyclic weights at any
    step: to compare steps, or to choose the best one, take `eval_contrastive_loss`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. Open a CLIP checkpoint with `CyCLIPModel.from_pretrained`, and other kinds with transformers' `AutoModel`.
        args ([`CyCLIPTrainingArguments`]):
            The arguments.
        train_dataset (`datasets.Dataset` or `torch.utils.data.Dataset`, *optional*):
            Rows with `image` (PIL image, `{"bytes", "path"}` or file name) and `caption` (a string, or a list from which
            each epoch draws one), read by index. A table with a column `shard` is read from few shards at a time.
        eval_dataset (`datasets.Dataset`, `torch.utils.data.Dataset` or `dict`, *optional*):
            Rows of the same form. The first of several captions is used.
        processing_class ([`~transformers.ProcessorMixin`], *optional*):
            Tokenizer and image processor, saved with every checkpoint.
        data_collator (`Callable`, *optional*):
            Defaults to a [`CyCLIPDataCollator`] with `processing_class`.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        extra_metrics (`Callable`, *optional*):
            Computes further metrics of every evaluation, also without an `eval_dataset`. It takes the model and returns
            numbers by name, without the prefix `eval`. All processes call it. `metric_for_best_model` can name them.
        augment (`Callable`, *optional*):
            Makes a second view of an image and its caption, given both and a `random.Random`. The loss then has its
            in-modal contrastive term, logged as `inmodal_contrastive_loss`. It runs in the dataloader's workers, and not
            in evaluation.
        random_resized_crop (`tuple[float, float]`, *optional*):
            Trains on a random part of each image, stretched to the size that the model takes: the least and the most of
            its area to keep, such as `(0.9, 1.0)`. Its aspect ratio is between 3:4 and 4:3. Seed, epoch and row decide
            which part. Second views are made of whole images, and evaluations see them.
        cyclic_terms ([`CyclicTerms`], *optional*):
            The cyclic terms of a model without a [`CyCLIPConfig`]. `None` takes their defaults. They are recorded in `run.json`.
        run_arguments (`dict`, *optional*):
            Dataclasses of the run's other arguments, `model` and `data`, for its record.
        kwargs (*optional*):
            Further arguments of [`~transformers.Trainer`].

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from transformers import AutoProcessor
    >>> from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments

    >>> trainer = CyCLIPTrainer(
    ...     model=CyCLIPModel.from_pretrained("openai/clip-vit-base-patch32"),
    ...     args=CyCLIPTrainingArguments(output_dir="out", per_device_train_batch_size=256, num_train_epochs=3),
    ...     train_dataset=load_dataset("jxie/flickr8k", split="train").rename_column("caption_0", "caption"),
    ...     processing_class=AutoProcessor.from_pretrained("openai/clip-vit-base-patch32"),
    ... )
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: CyCLIPTrainingArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        data_collator: Callable[[list[dict]], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        extra_metrics: Callable[[nn.Module], dict[str, float]] | None = None,
        augment: Augment | None = None,
        random_resized_crop: tuple[float, float] | None = None,
        cyclic_terms: CyclicTerms | None = None,
        run_arguments: dict[str, Any] | None = None,
        **kwargs,
    ):
        eval_datasets = eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,)
        processor = processing_class if data_collator is None else None
        check_trainer(
            model, args, (train_dataset, *eval_datasets), processor, cyclic_terms, augment is not None, kwargs
        )
        if random_resized_crop is not None:
            check_area(random_resized_crop)
        self.random_resized_crop = random_resized_crop
        if data_collator is None:
            if processing_class is None:
                raise ValueError("Pass the model's processor as `processing_class`, or a `data_collator`.")
            max_length = context_length(processing_class.tokenizer, model.config)
            data_collator = CyCLIPDataCollator(processing_class, max_length, padding=padding_of(model.config))
        if isinstance(data_collator, CyCLIPDataCollator):
            data_collator.check_model(model.config)
        has_own_loss = isinstance(model, CyCLIPModel)
        if not has_own_loss:
            if isinstance(data_collator, CyCLIPDataCollator):
                check_embeddings(model, data_collator.processor, data_collator.max_length)
            train_with_terms(model, cyclic_terms or CyclicTerms())
        # One with a `__call__` of its own gets whole images, and its batches stay as they are.
        is_plain = type(data_collator) is CyCLIPDataCollator
        self._plain_collator = replace(data_collator, normalize=False) if is_plain else None
        # All padding is behind the end of text, to which no token before attends: the mask would change no bit. But with one,
        # transformers looks at it on the host, and attention is not causal by itself.
        self._drops_mask = is_plain and has_own_loss
        self.extra_metrics, self.augment, self.run_arguments = extra_metrics, augment, run_arguments or {}
        self._pending_metrics: dict[str, float] = {}
        self._attention_mask: Tensor | None = None
        if eval_dataset is None and extra_metrics is not None:
            eval_dataset = {}  # transformers refuses to evaluate without a dataset
        clamp = [] if has_sigmoid_loss(model) else [ClampLogitScale()]
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            callbacks=[*clamp, HealthCallback(), *(callbacks or [])],
            **kwargs,
        )
        self._logit_scale_shape = model.logit_scale.shape
        if self.is_fsdp_enabled:
            if args.save_on_each_node and num_machines() > 1:
                raise ValueError(
                    "`save_on_each_node` does not go with FSDP, whose first process writes the state of all: take an output folder on "
                    "a disk that all machines share."
                )
            prepare_for_fsdp(model, self.accelerator.state.fsdp_plugin)
        self._sampled_dataset = None
        if train_dataset is not None:
            self._get_train_sampler()  # raises at once if the dataset is too small
        self.broken_images = BrokenImages("training")
        self._broken_images_by_evaluation: dict[str, BrokenImages] = {}
        self._save_total_limit = args.save_total_limit
        self._preemption = None
        if args.checkpoint_on_signal:
            self._preemption = PreemptionCallback(args)
            self.add_callback(self._preemption)
        self._run_record: dict[str, Any] | None = None

    def _get_dataloader(
        self, dataset: Dataset, description: str, *args, is_training: bool = False, **kwargs
    ) -> DataLoader:
        # The collator knows down to which size a JPEG may be decoded.
        min_image_size = getattr(self.data_collator, "min_image_size", None)
        samples = CaptionedSamples(
            dataset,
            self._data_seed(),
            min_image_size,
            augment=self.augment if is_training else None,
            sampler=self._get_train_sampler() if is_training else None,
            process_image=None if self._plain_collator is None else self._plain_collator.process_image,
            random_resized_crop=self.random_resized_crop if is_training else None,
        )
        loader = super()._get_dataloader(samples, description, *args, is_training=is_training, **kwargs)
        if self.args.checkpoint_on_signal:
            # accelerate's loader iterates over the one that it was made of.
            loader.base_dataloader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
        return loader

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        # This is the only place where transformers lets a dataset have its own collator.
        return SampleCollator(self._plain_collator or data_collator)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        """The sampler of the training set. It is made once for each set, since it may have to read all captions."""
        if self._sampled_dataset is not self.train_dataset:
            self._train_sampler = make_train_sampler(
                self.train_dataset,
                self._train_batch_size * self.args.world_size,
                self._data_seed(),
                no_duplicate_captions=self.args.no_duplicate_captions,
            )
            self._sampled_dataset = self.train_dataset
        return self._train_sampler

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        r"""
        Trains, from the start or from a checkpoint. Logs come every `logging_steps`, and at every checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to go on from; `True` for the newest whole one in `output_dir`.
            args, kwargs (*optional*):
                As in [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: its seconds, speed and mean loss are those of all parts of a resumed
            training.

        Raises:
            `ValueError`: no checkpoint to go on from, one that is damaged or of weights alone, or one of another model; an
                output folder that several machines do not share, or share with `save_on_each_node`.
            [`~modeling_cyclip.divergence.DivergenceError`]: the loss or the weights are not finite.
            [`~modeling_cyclip.checkpoints.CheckpointError`]: a checkpoint could not be written.
            `SystemExit`: the training was told to stop and has saved a checkpoint (`checkpoint_on_signal`).
        """
        if resume_from_checkpoint or self.args.save_strategy != SaveStrategy.NO or self.args.checkpoint_on_signal:
            check_output_folder_of_machines(self.args.output_dir, self.args.save_on_each_node)
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir, self.args.save_on_each_node)
        if checkpoint is None and resume_from_checkpoint:
            raise ValueError(f"{self.args.output_dir} has no complete checkpoint to go on from.")
        self._first_bad_step, self._train_parts = FirstBadStep(), WeightedMean()
        if (name := first_not_finite(self.model)) is not None:
            raise DivergenceError(f"The model cannot be trained: {name} has values that are not finite.")
        if self.args.should_save:
            # Now, not at each save: the commit is that of the code that runs, whatever is edited meanwhile.
            self._run_record = self._make_run_record()
            if checkpoint is not None:
                compare_runs(checkpoint, self._run_record)
        if self.model_wrapped is self.model:
            # An evaluation beforehand marks the model as prepared, and accelerate would not wrap it in DDP any more.
            self.model._is_accelerate_prepared = False
        # At the end, transformers would by this limit delete the newest checkpoint for the best.
        self._save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self._preemption or nullcontext(), patch_dropout(self.model, self.args.patch_dropout):
                output = super().train(checkpoint, *args, **kwargs)
        finally:
            self.args.save_total_limit = self._save_total_limit
        self._stop_if_diverged()
        return output

    def _stop_if_diverged(self, look_at_weights: bool = True) -> None:
        """Raises a [`~modeling_cyclip.divergence.DivergenceError`] in all processes, which all call this."""
        if (step := self._first_bad_step.read()) is not None:
            found = f"The loss is not finite at step {step}"
        elif look_at_weights and (names := list(filter(None, gather_object([first_not_finite(self.model)])))):
            found = f"{names[0]} has values that are not finite after step {self.state.global_step}"
        else:
            return
        checkpoint = last_complete_checkpoint(self.args.output_dir)
        raise DivergenceError(
            f"{found}: the training has diverged and ends. Lower `learning_rate` (here {self.args.learning_rate:g}) or "
            "lengthen the warm-up; with `fp16`, try `bf16`. "
            + ("There is no checkpoint." if checkpoint is None else f"The last good checkpoint is {checkpoint}.")
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            rates = self.args.vision_learning_rate, self.args.text_learning_rate
            set_tower_learning_rates(optimizer, self.model if model is None else model, *rates)
            optimizer.register_load_state_dict_post_hook(fit_optimizer_state)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decay_parameter_names(model)

    def cyclic_weight_factor(self) -> float:
        """Factor of the cyclic weights at this step: 0 up to `cyclic_start_ratio`, then rising to 1 over `cyclic_warmup_ratio`."""
        steps_since = self.state.global_step - self.args.cyclic_start_ratio * self.state.max_steps
        warmup_steps = self.args.cyclic_warmup_ratio * self.state.max_steps
        if steps_since < 0:
            return 0.0
        return min(1.0, steps_since / warmup_steps) if warmup_steps > 0 else 1.0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        if self.args.gradient_cache_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        parts, image_embeds, text_embeds = cached_step(
            model,
            inputs,
            self.args.gradient_cache_chunk_size,
            compute_loss=partial(
                self.model.compute_loss, cyclic_weight_factor=self.cyclic_weight_factor(), return_all_parts=False
            ),
            backward=self.accelerator.backward,
            no_sync=partial(self.accelerator.no_sync, model),
        )
        self._remember(parts._asdict(), image_embeds, text_embeds, inputs)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return parts.loss.detach()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, CyCLIPOutput]:
        outputs = model(
            **inputs, return_loss=True, cyclic_weight_factor=self.cyclic_weight_factor(), return_all_parts=False
        )
        self._remember(outputs, outputs.image_embeds, outputs.text_embeds, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _remember(
        self, parts: Mapping[str, Tensor], image_embeds: Tensor, text_embeds: Tensor, inputs: dict[str, Tensor]
    ) -> None:
        """Keeps what the next log reports, without copying it to the host."""
        if self.model.training:
            self._first_bad_step.add(parts["loss"], self.state.global_step + 1)
            if self.args.device.type == "cpu":  # where reading it costs nothing
                self._stop_if_diverged(look_at_weights=False)
        self._train_parts.add({name: parts.get(name) for name in AVERAGED}, weight=1)
        self._last_embeds = image_embeds.detach(), text_embeds.detach()
        self._last_captions = inputs["input_ids"], inputs.get("attention_mask", self._attention_mask)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        # The samples' messages to the Trainer are not inputs of the model.
        account = self.broken_images if self.model.training else self._broken_eval_images
        account.meet(inputs.pop("broken_images", {}))
        self._sample_index = inputs.pop("sample_index", None)
        # Collators of transformers' contrastive examples set this, but here the loss is always returned.
        inputs.pop("return_loss", None)
        inputs = super()._prepare_inputs(inputs)
        self._attention_mask = None
        if self._plain_collator is not None:
            for name in ("pixel_values", "augmented_pixel_values"):
                if name in inputs:
                    inputs[name] = self._plain_collator.normalized(inputs[name])
        if self._drops_mask:
            self._attention_mask = inputs.pop("attention_mask", None)
            inputs.pop("augmented_attention_mask", None)
        return inputs

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        # transformers takes the norm at every step, where only logs show it.
        if grad_norm is None and not is_log_due(self.args, self.state, self._steps_in_epoch):
            return None
        return super()._get_grad_norm(model, grad_norm)

    def _run_epoch(self, *args, epoch: int, num_update_steps_per_epoch: int, **kwargs) -> None:
        self._steps_in_epoch = num_update_steps_per_epoch
        # transformers would train a finished run that is resumed for one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # Where a resumed epoch skips batches that several processes share, accelerate does not reach the sampler behind both.
        self._get_train_sampler().set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, num_update_steps_per_epoch=num_update_steps_per_epoch, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        # Every checkpoint ends a window of the log, so that a resumed training logs what one without a break does.
        may_save = self.control.should_save or (
            self.control.should_evaluate and self.args.save_strategy == SaveStrategy.BEST
        )
        self.control.should_log |= may_save
        if self.control.should_log:
            self._stop_if_diverged(look_at_weights=may_save)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._preemption is not None and self._preemption.stops:
            self._preemption.exit(self.state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs:
            logs.update(
                over_all_parts(logs, self.state.log_history, self.state.global_step, self._initial_global_step)
            )
        if "loss" in logs and start_time is not None:
            logs["train_seconds"] = seconds_before(self.state.log_history, self._initial_global_step) + (
                time.time() - start_time
            )
            logs.update(self._train_parts.drain())
            *embeds, captions = self.accelerator.gather((*self._last_embeds, caption_keys(*self._last_captions)))
            has_cyclic_losses = logs.keys() >= set(CYCLIC_LOSSES)
            logs.update(batch_figures(self.model, *embeds, captions, has_cyclic_losses))
        if "loss" in logs or "train_loss" in logs:
            self.broken_images.report()
            logs["broken_images"] = len(self.broken_images)
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is None:
            state_dict = self.accelerator.unwrap_model(self.model).state_dict()
        with saving_on_each_machine(self.model):
            super()._save(output_dir, with_logit_scale_of(self._logit_scale_shape, state_dict))
        if self.args.should_save and isinstance(self.processing_class, ProcessorMixin):
            # transformers 4 looks for this file, where 5 writes all into the processor's.
            self.processing_class.image_processor.save_pretrained(output_dir or self.args.output_dir)
        self._record(output_dir)

    def _record(self, output_dir: str | None) -> None:
        """Writes the run's record beside the saved model, for the card: as the run began, if it was trained."""
        write_run_record(output_dir or self.args.output_dir, self._run_record or self._make_run_record())

    def _make_run_record(self) -> dict[str, Any]:
        return run_record(self.args, self.model, self.train_dataset, **self.run_arguments)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        checkpoint = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            if self.args.should_save:
                mark_incomplete(checkpoint)
            super()._save_checkpoint(model, trial)
            if not self.args.push_to_hub:
                self._complete(checkpoint)
        except Exception as error:  # torch and safetensors raise many kinds of errors when a disk is full
            if is_complete(checkpoint):
                raise
            raise CheckpointError(
                f"{checkpoint} could not be written to its end: {error}. Older ones are whole. With space on the disk, resuming "
                "goes on from the newest of them."
            ) from error
        # Older checkpoints stay until this one is complete.
        if self.args.should_save:
            if self._save_total_limit is not None:
                remove_incomplete(run_dir)
            rotate_checkpoints(run_dir, self._save_total_limit, checkpoint, self.state.best_model_checkpoint)

    @property
    def _transformers_finds_all_weights(self) -> bool:
        """Whether transformers' own loading of a checkpoint does: of a CyCLIPModel, and FSDP's of every model."""
        return isinstance(self.model, CyCLIPModel) or self.is_fsdp_enabled

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._transformers_finds_all_weights:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_world_process_zero() or not self.args.save_on_each_node:
            self._load_best_weights()
        if self.args.save_on_each_node:
            # A machine that was replaced lacks it.
            for weights in self.model.state_dict().values():
                broadcast(weights)

    def _load_best_weights(self) -> None:
        if self._transformers_finds_all_weights:
            super()._load_best_model()
        else:
            load_weights(self.model, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes what the end of the training would, in the background. transformers would upload the whole folder."""
        from .hub.publish import publish_checkpoint

        self._complete(checkpoint_folder)  # before the Hub has a chance to fail
        is_pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        if is_pushing and not self.args.hub_always_push:
            return
        if os.path.exists(os.path.join(checkpoint_folder, "adapter_config.json")):
            return  # adapters are published merged, at the end
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        name = os.path.basename(checkpoint_folder)
        resumed_from = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: name}
        job = publish_checkpoint(
            self.args.output_dir,
            checkpoint_folder,
            self.hub_model_id,
            resumed_from=resumed_from.get(self.args.hub_strategy),
            commit_message=f"Training in progress, step {self.state.global_step}",
            private=self.args.hub_private_repo,
            revision=self.args.hub_revision,
            token=self.args.hub_token,
        )
        if is_pushing:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _complete(self, checkpoint: str) -> None:
        self.accelerator.wait_for_everyone()
        # Every process wrote some of the files, and a machine flushes only what was written on it.
        if self.is_local_process_zero() and not self.args.should_save:
            flush(checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(checkpoint)
        # No process goes on to its end while the marker is not written: launchers then kill the others.
        self.accelerator.wait_for_everyone()

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # With several datasets, transformers calls this method again for each of them, with `eval_dataset`.
        if self.extra_metrics is not None and eval_dataset is None:
            with self.compute_loss_context_manager():
                metrics = self.extra_metrics(self.model)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            if not self.eval_dataset:
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
                return metrics
            self._pending_metrics = metrics
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        if self.is_fsdp_enabled and not isinstance(self.model, FSDPModule):
            raise ValueError("FSDP shards a model together with its optimizer: evaluate during or after a training.")
        self._broken_eval_images = self._broken_images_by_evaluation.setdefault(
            metric_key_prefix, BrokenImages(metric_key_prefix)
        )
        self._eval_parts = WeightedMean()
        self._eval_rows_seen: set[int] = set()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._broken_eval_images.report()
        # transformers averages over batches as if all were full. These are means over pairs.
        output.metrics.update({f"{metric_key_prefix}_{name}": mean for name, mean in self._eval_parts.drain().items()})
        output.metrics.update(self._pending_metrics)
        self._pending_metrics = {}
        return output

    @torch.no_grad()
    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], *args, **kwargs
    ) -> tuple[Tensor | None, None, None]:
        """The loss of the batch of all processes. Every row of the dataset counts once."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        *embeds, sample_index = self.accelerator.gather(
            (outputs.image_embeds, outputs.text_embeds, self._sample_index)
        )
        # Rows repeat where they pad the last batch to the same length in all processes or replace broken images.
        kept = []
        for position, index in enumerate(sample_index.tolist()):
            if index not in self._eval_rows_seen:
                self._eval_rows_seen.add(index)
                kept.append(position)
        if not kept:
            return None, None, None
        numbers = {name: outputs[name] for name in ("logit_scale", "logit_bias") if name in outputs}
        parts = self.model.compute_loss(*(tensor[kept] for tensor in embeds), **numbers)
        self._eval_parts.add(parts._asdict(), weight=len(kept))
        return parts.loss, None, None

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> ModelCard | None:
        r"""
        Writes the model's card, from what its folder holds. What is not known is left out.

        Args:
            language (`str` or `list[str]`, *optional*):
                Languages of the captions, as the Hub names them.
            license (`str`, *optional*):
                The Hub's identifier of the weights' licence.
            tags (`str` or `list[str]`, *optional*):
                Tags beside the card's own.
            finetuned_from (`str`, *optional*):
                The checkpoint on the Hub that was trained on. Default: the one that the model was opened from.
            dataset_tags (`str` or `list[str]`, *optional*):
                Datasets on the Hub. Default: the one that `cyclip train` was told; a table does not say where it was loaded from.
            model_name, tasks, dataset, dataset_args (*optional*):
                Taken for scripts that pass them to transformers' Trainer. The card says what they say from its own files.

        Returns:
            [`~huggingface_hub.ModelCard`]; `None` but on the main process.
        """
        # The one import that points up: a Trainer without a card of its own would publish transformers' draft.
        from .hub.card import write_model_card

        if not self.is_world_process_zero():
            return None
        if self.state.global_step > 0:
            self.save_state()
        return write_model_card(
            self.args.output_dir,
            self.hub_model_id or self.args.output_dir,
            language=language,
            license=license,
            tags=tags,
            base_model=finetuned_from,
            datasets=dataset_tags,
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        r"""
        Saves the model, writes its card and publishes both in one commit, without pickles. A `hub_strategy` other than
        `end` does so at every save besides.

        Args:
            commit_message, blocking, token, revision, private (*optional*):
                As in [`~transformers.Trainer.push_to_hub`].
            kwargs (*optional*):
                What [`CyCLIPTrainer.create_model_card`] takes. The card that says so replaces one on the Hub, which would
                stay if it were of the same weights.

        Returns:
            [`~huggingface_hub.CommitInfo`], or its `Future` where `blocking` is `False`; `None` but on the main process.
        """
        from .hub.publish import publish

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        card = self.create_model_card(**kwargs)
        self._finish_current_push()
        commit = partial(
            publish,
            self.args.output_dir,
            self.hub_model_id,
            card=card if kwargs else None,
            commit_message=commit_message,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision if revision is None else revision,
            token=self.args.hub_token if token is None else token,
        )
        return commit() if blocking else HfApi().run_as_future(commit)
