"""Warns once of each sign in the log that a training goes wrong, and says what to do about it."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from .optimizer import MAX_LOGIT_SCALE


logger = logging.get_logger(__name__)

# A sign must show in this many logs in a row. A single log can be a bad batch, and a healthy start is over sooner.
MIN_LOGS = 5
# It must also last this many steps, however often is logged. Small models from scratch leave ln(N) within 100 steps.
MIN_STEPS = 200


@dataclass(frozen=True)
class Reading:
    """A training log of [`CyCLIPTrainer`], and what else the signs are read from."""

    log: Mapping[str, float]
    first_log: Mapping[str, float]  # of this run
    batch_size: int  # N, the pairs of all processes
    peak_learning_rate: float

    @property
    def guessing(self) -> float:
        """
        The contrastive loss of guessing: ln(N), or SigLIP's where every pair is taken for a match with the probability 1/N.
        """
        n, choice = self.batch_size, math.log(self.batch_size)
        return choice + (n - 1) * math.log(n / (n - 1)) if "logit_bias" in self.log and n > 1 else choice

    @property
    def loss_share(self) -> float:
        """The contrastive loss divided by that of guessing."""
        return self.log["contrastive_loss"] / self.guessing if self.batch_size > 1 else 0.0

    @property
    def contrastive(self) -> float:
        """The contrastive part of the loss. With augmented views it is the mean of two terms."""
        contrastive = self.log["contrastive_loss"]
        return (contrastive + self.log.get("inmodal_contrastive_loss", contrastive)) / 2

    @property
    def has_cyclic_terms(self) -> bool:
        """Whether the loss is more than its contrastive part. Both are sums in float32."""
        return not math.isclose(self.log["loss"], self.contrastive, rel_tol=1e-6)

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up has brought the rate to a tenth of its peak. No progress is expected before."""
        return self.log["learning_rate"] >= 0.1 * self.peak_learning_rate


def nothing_learnt(reading: Reading) -> str | None:
    """The contrastive loss stays at that of guessing."""
    # A loss within 2 % of that of guessing shows no more than the fluctuation of the start.
    if not reading.is_warm or reading.loss_share < 0.98:
        return None
    guessing = f"{reading.guessing:.2f}" if "logit_bias" in reading.log else f"ln({reading.batch_size})"
    cyclic = "cyclic terms that hold the embeddings together (let them begin later, `cyclic_start_ratio`); "
    return (
        f"The contrastive loss ({reading.log['contrastive_loss']:.2f}) stays at {guessing}, that of "
        f"guessing: nothing is learnt. Likely causes: {cyclic if reading.has_cyclic_terms else ''}captions that do not "
        "belong to their images (check the columns and the paths); a `learning_rate` too high, or a warm-up too short, for "
        "this model. Whether the model can learn at all shows in `cyclip train --overfit_check 64`."
    )


def collapsed(reading: Reading) -> str | None:
    """All images, or all captions, have nearly the same embedding, and pairs are not told apart."""
    cosines = {"image": reading.log["image_cosine"], "text": reading.log["text_cosine"]}
    tower = max(cosines, key=cosines.get)
    # A narrow cone of embeddings is not a collapse if they tell pairs apart, that is, if the loss is well below ln(N).
    if not reading.is_warm or cosines[tower] < 0.95 or reading.loss_share < 0.9:
        return None
    cyclic = (
        "cyclic terms, which a collapse satisfies (let them begin later, `cyclic_start_ratio`, or lower weights); "
    )
    return (
        f"The {tower} embeddings have collapsed: their mean pairwise cosine is {cosines[tower]:.4f}. Likely causes: "
        f"{cyclic if reading.has_cyclic_terms else ''}a `learning_rate` too high or a warm-up too short; images or "
        "captions that hardly differ."
    )


def scale_at_bound(reading: Reading) -> str | None:
    """`logit_scale` has risen to 100 in this run. CLIP checkpoints that start at 100 are fine."""
    if "logit_bias" in reading.log:  # SigLIP's scale has no bound
        return None
    # The bound is rounded to the precision of the weights, in bfloat16 to 99.
    bound = torch.tensor(MAX_LOGIT_SCALE, dtype=torch.bfloat16).exp().item()
    if reading.log["logit_scale"] < bound or reading.first_log["logit_scale"] >= bound:
        return None
    return (
        "`logit_scale` sits at its bound of 100. That is where long trainings on much data end; early, or on little "
        "data, the model is memorising its pairs (compare eval_loss; train shorter, bring more data) or the "
        "`learning_rate` is too high."
    )


def scale_sunk(reading: Reading) -> str | None:
    """`logit_scale` is so low that no embeddings can make the loss small."""
    # At scale 2, even perfect embeddings of 128 pairs have a loss of about ln(1 + 127 / e²) = 2.9.
    if reading.log["logit_scale"] > 2:
        return None
    return (
        f"`logit_scale` has sunk to {reading.log['logit_scale']:.2f}: the model gives up telling pairs apart. Likely "
        "causes: captions that do not belong to their images, many pairs with the same or nearly the same caption in a "
        "batch, a `learning_rate` too high."
    )


def cyclic_outweighs(reading: Reading) -> str | None:
    """The weighted cyclic terms are larger than the contrastive term, which is far from solved."""
    cyclic = reading.log["loss"] - reading.contrastive
    # When the contrastive term is nearly solved, any other term outweighs it.
    if cyclic <= reading.contrastive or reading.loss_share < 0.5:
        return None
    if "cyclic_gradient_factor" in reading.log:  # their gradient is bounded, whatever their size
        return None
    return (
        f"The weighted cyclic terms ({cyclic:.2f}) outweigh the contrastive one ({reading.contrastive:.2f}), which may keep "
        f"the model from learning. They grow with the batch, here {reading.batch_size}, and are largest at the start: "
        "`cyclic_max_gradient_share=1` bounds their pull at every step, and with `cyclic_start_ratio=0.5` the model learns "
        "first. Or lower `inmodal_cyclic_weight` and `crossmodal_cyclic_weight`."
    )


def captions_repeat(reading: Reading) -> str | None:
    """Several pairs of a batch have the same caption."""
    share = reading.log["repeated_captions"]
    # Natural captions repeat now and then, but one pair in a hundred is more than chance.
    if share < 0.01:
        return None
    return (
        f"{100 * share:.0f} % of the captions in a batch repeat another one of it: each counts as a negative of its "
        "equals, and no model can tell them apart. Likely causes: captions made from few labels or templates, "
        "duplicates in the data, or captions equal up to the context length. Leave `no_duplicate_captions` on; where "
        "the data has too few different captions for that, take smaller batches or more caption templates."
    )


# Each sign, and for how many steps it must last. Cyclic terms that are too heavy do their damage at the start.
SIGNS: dict[Callable[[Reading], str | None], int] = {
    nothing_learnt: MIN_STEPS,
    collapsed: MIN_STEPS,
    scale_at_bound: MIN_STEPS,
    scale_sunk: MIN_STEPS,
    cyclic_outweighs: 50,
    captions_repeat: 0,
}


class HealthCallback(TrainerCallback):
    """Warns once of each sign that shows in [`MIN_LOGS`] training logs in a row and lasts enough steps."""

    def __init__(self):
        self.first_log: Mapping[str, float] | None = None
        self.shown: dict[Callable, list[int]] = {sign: [] for sign in SIGNS}

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and MIN_STEPS // 4 <= state.global_step < MIN_STEPS:
            # Too short for a warning on the way, and now there is nothing left to wait for.
            found = signs_at_the_end(state.log_history, state.train_batch_size * args.world_size)
            for sign in (nothing_learnt, collapsed):
                if sign in found:
                    logger.warning(found[sign])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "contrastive_loss" not in logs or not state.is_world_process_zero:
            return
        self.first_log = self.first_log or dict(logs)
        batch_size = state.train_batch_size * args.world_size
        reading = Reading(logs, self.first_log, batch_size, args.learning_rate)
        for sign, steps in list(self.shown.items()):
            message = sign(reading)
            if message is None:
                steps.clear()
                continue
            steps.append(state.global_step)
            if len(steps) >= MIN_LOGS and steps[-1] - steps[0] >= SIGNS[sign]:
                logger.warning(message)
                del self.shown[sign]


def signs_at_the_end(log_history: Sequence[Mapping[str, float]], batch_size: int) -> dict[Callable, str]:
    """
    What a training that has ended shows, however short it was: the message of each sign that is in its last [`MIN_LOGS`]
    training logs, or in all where there are fewer. `log_history` is that of trainer_state.json.
    """
    logs = [log for log in log_history if "contrastive_loss" in log]
    peak = max((log["learning_rate"] for log in logs), default=0.0)
    # The last logs of a schedule that ends at zero are as cold as the first ones.
    readings = [reading for log in logs if (reading := Reading(log, logs[0], batch_size, peak)).is_warm][-MIN_LOGS:]
    messages = {sign: [sign(reading) for reading in readings] for sign in SIGNS}
    return {sign: by_log[-1] for sign, by_log in messages.items() if by_log and None not in by_log}


def caption_keys(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """One number for each caption, of shape `(batch,)`. Captions of the same tokens have the same one at any padding."""
    draw = random.Random(0)
    factors = torch.tensor([draw.getrandbits(62) for _ in range(input_ids.shape[1])], device=input_ids.device)
    # A sum of 64-bit integers may overflow, which does not harm a hash. 1 is added since 0 is a token, too.
    terms = (input_ids + 1) * factors
    return (terms if attention_mask is None else terms * attention_mask).sum(dim=1)


def batch_statistics(image_embeds: Tensor, text_embeds: Tensor, captions: Tensor) -> dict[str, float]:
    r"""
    The statistics of a batch that the Trainer logs and the signs are read from.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm image embeddings.
        text_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm text embeddings.
        captions (`torch.Tensor` of shape `(batch,)`):
            The [`caption_keys`] of the captions.

    Returns:
        `dict[str, float]`: `image_cosine` and `text_cosine`, the mean cosines of two different images and of two
        different captions, and `repeated_captions`, the share of captions that repeat an earlier one of the batch.
    """
    return {
        "image_cosine": _mean_cosine(image_embeds),
        "text_cosine": _mean_cosine(text_embeds),
        "repeated_captions": 1 - len(captions.unique()) / len(captions),
    }


def _mean_cosine(embeds: Tensor) -> float:
    # The squared norm of the sum is the sum of all N² cosines. N of them are of an embedding with itself: its squared norm.
    n, embeds = len(embeds), embeds.float()
    return (embeds.sum(dim=0).square().sum() - embeds.square().sum()).item() / max(1, n * (n - 1))
