"""The exact gradient of one large contrastive batch, in the memory of a chunk (Gao et al., 2021, GradCache)."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .loss import CyCLIPLossOutput


def cached_step(
    model: nn.Module,
    inputs: dict[str, Tensor],
    chunk_size: int,
    compute_loss: Callable[..., CyCLIPLossOutput],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager],
) -> tuple[CyCLIPLossOutput, Tensor, Tensor]:
    r"""
    Adds the gradients of the batch's loss to the parameters, in three stages:

    1. Embed the batch chunk by chunk, without a graph.
    2. Compute the gradient of the loss with respect to all embeddings of the batch.
    3. Embed each chunk again, with a graph, and backpropagate the gradients of its embeddings.

    Dropout draws the same masks in both passes. Every pass calls the wrapped model, so autocast, DDP and FSDP apply.
    Layers that normalise over the batch (batch norm) see one chunk at a time.

    Args:
        model (`nn.Module`):
            A [`CyCLIPModel`] or another dual encoder that the Trainer trains, wrapped or not, in training mode.
        inputs (`dict[str, torch.Tensor]`):
            The inputs of the model. The first dimension of each is the batch.
        chunk_size (`int`):
            Pairs embedded at once, each with its augmented views if there are any.
        compute_loss (`Callable`):
            Computes the loss from `image_embeds`, `text_embeds`, `logit_scale`, `logit_bias` if the model has one, and the
            embeddings of augmented views.
        backward (`Callable`):
            Backpropagates the loss. Mixed precision may scale it (`accelerator.backward`).
        no_sync (`Callable`):
            Context in which the wrapper does not average gradients. All chunks but the last run in it.

    Returns:
        `tuple(CyCLIPLossOutput, torch.Tensor, torch.Tensor)`: the loss with its parts, and all image and text embeddings.
    """
    chunks = [
        {name: tensor[start : start + chunk_size] for name, tensor in inputs.items()}
        for start in range(0, len(inputs["input_ids"]), chunk_size)
    ]
    device = inputs["input_ids"].device

    random_states = []
    embeds = {f"{kind}_embeds": [] for kind in ("image", "text", "augmented_image", "augmented_text")}
    with torch.no_grad():
        for chunk in chunks:
            random_states.append(_random_state(device))
            outputs = model(**chunk)
            for name in embeds.keys() & outputs.keys():
                embeds[name].append(outputs[name])

    leaves = {name: torch.cat(tensors) for name, tensors in embeds.items() if tensors}
    numbers = [name for name in ("logit_scale", "logit_bias") if name in outputs]
    leaves.update({name: outputs[name].detach().clone() for name in numbers})
    for leaf in leaves.values():
        leaf.requires_grad_()
    parts = compute_loss(**leaves)
    backward(parts.loss)
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    number_grads = {name: grads.pop(name) for name in numbers}

    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        rows = slice(number * chunk_size, (number + 1) * chunk_size)
        _set_random_state(random_states[number], device)
        # The backward pass must be inside, too, since it is what averages gradients.
        with torch.enable_grad() if is_last else no_sync():
            outputs = model(**chunk)
            # By the chain rule, this sum has the gradient of the loss. It includes scale and bias in every chunk, since DDP
            # expects every forward pass to use every parameter, but only the last chunk counts them.
            surrogate = sum(outputs[name] * (grad if is_last else 0 * grad) for name, grad in number_grads.items())
            for name, grad in grads.items():
                surrogate = surrogate + (outputs[name] * grad[rows]).sum()
            surrogate.backward()
    return parts, leaves["image_embeds"].detach(), leaves["text_embeds"].detach()


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
