"""The log of a training: when one is due, and what it says beside the loss."""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import IntervalStrategy

from .blockwise import in_batch_recall
from .distributed import training_process_group
from .dual_encoder import has_sigmoid_loss
from .fsdp import whole
from .health import batch_statistics
from .loss import cyclic_regularisers
from .training_args import CyCLIPTrainingArguments


CYCLIC_LOSSES = ("inmodal_cyclic_loss", "crossmodal_cyclic_loss")
LOSS_PARTS = ("contrastive_loss", "inmodal_contrastive_loss", *CYCLIC_LOSSES)
AVERAGED = (*LOSS_PARTS, "cyclic_gradient_factor")


class WeightedMean:
    """
    Means of named numbers over those steps or batches that have them. They are summed on the device, so that no step waits
    for the host, and in float32, since a sum in half precision soon stops to grow.
    """

    def __init__(self):
        self.sums: dict[str, Tensor | float] = {}
        self.weights: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | None], weight: int) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + weight * value.detach().float()
                self.weights[name] = self.weights.get(name, 0) + weight

    def drain(self) -> dict[str, float]:
        means = {name: float(total) / self.weights[name] for name, total in self.sums.items()}
        self.sums, self.weights = {}, {}
        return means


def is_log_due(args: CyCLIPTrainingArguments, state: TrainerState, steps_in_epoch: int) -> bool:
    """Whether a log is due after the step that is being taken, as far as the arguments say."""
    step = state.global_step + 1
    if step == state.max_steps or (step == 1 and args.logging_first_step):
        return True
    # Saves come with a log, and evaluations may come with a save.
    intervals = (
        (args.logging_strategy, state.logging_steps),
        (args.save_strategy, state.save_steps),
        (args.eval_strategy, state.eval_steps),
    )
    return any(
        step % (every if strategy == IntervalStrategy.STEPS else steps_in_epoch) == 0
        for strategy, every in intervals
        if strategy in (IntervalStrategy.STEPS, IntervalStrategy.EPOCH)
    )


def batch_figures(
    model: PreTrainedModel, image_embeds: Tensor, text_embeds: Tensor, captions: Tensor, has_cyclic_losses: bool
) -> dict[str, float]:
    r"""
    What a log says of the last batch and of the model's numbers. All processes call this.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model that is trained.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm image embeddings of all processes.
        text_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm text embeddings of all processes.
        captions (`torch.Tensor` of shape `(batch,)`):
            The [`~modeling_cyclip.health.caption_keys`] of the captions.
        has_cyclic_losses (`bool`):
            Whether the loss has told both cyclic terms. If it has not, they are computed of this batch.

    Returns:
        `dict[str, float]`: the figures by the names that the log has for them.
    """
    image_to_text, text_to_image = in_batch_recall(image_embeds, text_embeds, training_process_group())
    figures = {}
    if not has_cyclic_losses:
        terms = cyclic_regularisers(image_embeds, text_embeds)
        figures.update({name: term.item() for name, term in zip(CYCLIC_LOSSES, terms, strict=True)})
    figures["logit_scale"] = whole(model.logit_scale).exp().item()
    if has_sigmoid_loss(model):
        figures["logit_bias"] = whole(model.logit_bias).item()
    figures["image_to_text_recall@1"] = image_to_text.item()
    figures["text_to_image_recall@1"] = text_to_image.item()
    return {**figures, **batch_statistics(image_embeds, text_embeds, captions)}


def seconds_before(log_history: list[dict[str, float]], first_step: int) -> float:
    """The seconds that the parts of a training before `first_step` took, by the log at its checkpoint; 0 without one."""
    logs = [log for log in log_history if "train_seconds" in log and log["step"] <= first_step]
    return logs[-1]["train_seconds"] if logs else 0.0


def over_all_parts(
    metrics: dict[str, float], log_history: list[dict[str, float]], last_step: int, first_step: int
) -> dict[str, float]:
    r"""
    The seconds, the speed and the mean loss of all parts of a training.

    Args:
        metrics (`dict[str, float]`):
            `train_runtime`, `train_loss` and what is counted a second, of the part from `first_step` to `last_step`.
        log_history (`list[dict[str, float]]`):
            The logs of all parts.
        last_step (`int`):
            The step at which the training ended.
        first_step (`int`):
            The step of the checkpoint that the last part resumed from, or 0.

    Returns:
        `dict[str, float]`: the same metrics.
    """
    if first_step == 0:
        return {}
    steps = last_step - first_step
    runtime = seconds_before(log_history, first_step) + metrics["train_runtime"]
    # Every step takes as many samples, so the counts grow with the steps. Without a step there is nothing to count from.
    growth = metrics["train_runtime"] / steps * last_step / runtime if steps else 0
    speeds = {name: value * growth for name, value in metrics.items() if name.endswith("_per_second")}
    total_loss, previous = metrics["train_loss"] * steps, 0
    for log in log_history:
        if "loss" in log and log["step"] <= first_step:
            total_loss += log["loss"] * (log["step"] - previous)
            previous = log["step"]
    return {
        "train_runtime": runtime,
        "train_loss": total_loss / max(1, steps + previous),
        **{name: round(value, 3) for name, value in speeds.items()},
    }
