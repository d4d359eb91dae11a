"""The exact gradient of one large contrastive batch, at the memory of a chunk (Gao et al., 2021, GradCache)."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .loss import CyCLIPLossOutput


EMBEDS = ("image_embeds", "text_embeds", "augmented_image_embeds", "augmented_text_embeds")


def cached_step(
    model: nn.Module,
    inputs: dict[str, Tensor],
    chunk_size: int,
    compute_loss: Callable[..., CyCLIPLossOutput],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager],
) -> tuple[CyCLIPLossOutput, Tensor, Tensor]:
    r"""
    Adds the gradients of the batch's loss to the parameters, in three stages: embed chunk by chunk without a graph; take
    the loss's gradient with respect to the embeddings of the whole batch; embed each chunk again with a graph and push
    its embeddings' gradients through. Dropout draws the same masks in both passes.

    Every pass goes through the wrapped model's forward, where autocast, DDP and FSDP live. Layers that normalise over
    the batch (batch norm) see a chunk at a time.

    Args:
        model (`nn.Module`):
            A [`CyCLIPModel`], wrapped or not, in training mode.
        inputs (`dict[str, torch.Tensor]`):
            Its inputs, the batch first.
        chunk_size (`int`):
            Pairs embedded at once, each with its augmented views where the inputs have them.
        compute_loss (`Callable`):
            The loss of all `image_embeds`, `text_embeds` and the `logit_scale`, and of the embeddings of augmented views.
        backward (`Callable`):
            Backpropagates the loss, scaled where mixed precision asks for it (`accelerator.backward`).
        no_sync (`Callable`):
            Context in which the wrapper does not average gradients: all chunks but the last run in it.

    Returns:
        `tuple(CyCLIPLossOutput, torch.Tensor, torch.Tensor)`: the loss with its parts, and all image and text embeddings.
    """
    batch_size = len(inputs["input_ids"])
    chunks = [
        {name: tensor[start : start + chunk_size] for name, tensor in inputs.items()}
        for start in range(0, batch_size, chunk_size)
    ]
    device = inputs["input_ids"].device

    random_states, embeds = [], {name: [] for name in EMBEDS}
    with torch.no_grad():
        for chunk in chunks:
            random_states.append(_random_state(device))
            outputs = model(**chunk)
            for name in embeds.keys() & outputs.keys():
                embeds[name].append(outputs[name])

    leaves = {name: torch.cat(tensors) for name, tensors in embeds.items() if tensors}
    leaves["logit_scale"] = outputs.logit_scale.clone()
    for leaf in leaves.values():
        leaf.requires_grad_()
    parts = compute_loss(**leaves)
    backward(parts.loss)
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    scale_grad = grads.pop("logit_scale")

    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        rows = slice(number * chunk_size, (number + 1) * chunk_size)
        _set_random_state(random_states[number], device)
        # The backward pass must be inside too: it is there that gradients are averaged.
        with torch.enable_grad() if is_last else no_sync():
            outputs = model(**chunk)
            # The gradient of this sum is the loss's own, by the chain rule. The scale is in it each time, since DDP
            # expects every forward to use every parameter, but counts once.
            surrogate = outputs.logit_scale * (scale_grad if is_last else 0 * scale_grad)
            for name, grad in grads.items():
                surrogate = surrogate + (outputs[name] * grad[rows]).sum()
            surrogate.backward()
    return parts, leaves["image_embeds"].detach(), leaves["text_embeds"].detach()


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
