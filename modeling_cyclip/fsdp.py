"""What a CLIP needs to train under FSDP2: layers to shard by, precision of sums, and `logit_scale` as a vector."""

from dataclasses import replace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def prepare_for_fsdp(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Call this before accelerate shards the model. Raises a `ValueError` for the first version of FSDP."""
    if plugin.fsdp_version != 2:
        raise ValueError(
            "CyCLIPTrainer shards by FSDP2, and this is version 1: set `fsdp_version: 2` in accelerate's configuration, as "
            "in training/accelerate/fsdp.yaml."
        )
    try:
        tokens = model.get_input_embeddings()
    except NotImplementedError as error:
        raise ValueError(
            f"accelerate asks a model to shard for its token embeddings, and a {type(model).__name__} does not name them: train "
            "it without FSDP, as DDP does."
        ) from error
    if plugin.transformer_cls_names_to_wrap is None:
        # accelerate shards the token embedding by itself, so the module that holds it cannot be a unit as well.
        holders = {type(module).__name__ for module in model.modules() if tokens in module.children()}
        plugin.transformer_cls_names_to_wrap = [name for name in model._no_split_modules if name not in holders]
    if plugin.mixed_precision_policy is not None:
        # accelerate would round the loss to half precision, and sum gradients over processes in it. DDP does neither.
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )
    make_logit_scale_one_dimensional(model)


def make_logit_scale_one_dimensional(model: nn.Module) -> None:
    """Gives `logit_scale` the shape `(1,)`, since FSDP cannot shard a scalar. Weights of both shapes can be loaded."""
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1), model.logit_scale.requires_grad)
    model.register_load_state_dict_pre_hook(_fit_logit_scale)


def whole(parameter: nn.Parameter) -> Tensor:
    """A parameter without its graph. FSDP leaves each process a shard of it, perhaps an empty one; all processes call this."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _fit_logit_scale(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    if (name := f"{prefix}logit_scale") in state_dict:
        state_dict[name] = state_dict[name].reshape(module.logit_scale.shape)


def with_logit_scale_of(shape: torch.Size, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with `logit_scale` in the shape that the model's checkpoints have: a scalar, or SigLIP's vector of one number."""
    return {name: tensor.reshape(shape) if name == "logit_scale" else tensor for name, tensor in state_dict.items()}


def fit_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments their parameter's shape. A checkpoint may come from a run with the other shape of `logit_scale`."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # The number of steps is a scalar for every parameter.
            if name != "step" and isinstance(value, Tensor) and value.numel() == parameter.numel() == 1:
                state[name] = value.reshape(parameter.shape)
