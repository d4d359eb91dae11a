"""Patch dropout: a training step reads a random part of the patches of each image (FLIP; Li et al., 2023)."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.altclip.modeling_altclip import AltCLIPVisionEmbeddings
from transformers.models.chinese_clip.modeling_chinese_clip import ChineseCLIPVisionEmbeddings
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.metaclip_2.modeling_metaclip_2 import MetaClip2VisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings


# These give the tokens of an image, positions added: so many that stand for no patch, and then the patches.
TOKENS_BEFORE_PATCHES = {
    CLIPVisionEmbeddings: 1,
    AltCLIPVisionEmbeddings: 1,
    ChineseCLIPVisionEmbeddings: 1,
    MetaClip2VisionEmbeddings: 1,
    SiglipVisionEmbeddings: 0,
}


def find_patches(model: nn.Module) -> tuple[nn.Module, int] | None:
    """The module of a model that embeds patches, and how many tokens it puts before them; `None` if there is none known."""
    for module in model.modules():
        for embeddings_class, num_before in TOKENS_BEFORE_PATCHES.items():
            if isinstance(module, embeddings_class):
                return module, num_before
    return None


@contextlib.contextmanager
def patch_dropout(model: nn.Module, share: float) -> Iterator[None]:
    r"""
    Within it, the vision tower in training mode reads the class token, if it has one, and a random part of the patches, drawn
    for each image anew. In evaluation mode it reads all. FLIP ([Li et al., 2023](https://huggingface.co/papers/2212.00794),
    section 3) does so to save time and memory, and so does open_clip's `force_patch_dropout`.

    The draws come from torch's generator of the device, as dropout's do: checkpoints and the gradient cache keep its state.
    Positions are already added to the patches, so that it does not matter which are left, nor in which order.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model in which [`find_patches`] finds some.
        share (`float`):
            The share of the patches to leave out, in [0, 1), rounded to a whole number of them. One at least is kept. 0 draws nothing.
    """
    if share == 0:
        yield
        return
    embeddings, num_before = find_patches(model)
    # A model that was compiled without a hook would go on without it.
    torch.compiler.reset()
    hook = embeddings.register_forward_hook(partial(_leave_out, share=share, num_before=num_before))
    try:
        yield
    finally:
        hook.remove()


def _leave_out(module: nn.Module, _: Any, tokens: Tensor, share: float, num_before: int) -> Tensor:
    if not module.training:
        return tokens
    before, patches = tokens[:, :num_before], tokens[:, num_before:]
    batch_size, num_patches, dim = patches.shape
    num_kept = max(1, num_patches - round(share * num_patches))
    kept = torch.rand(batch_size, num_patches, device=tokens.device).topk(num_kept).indices
    return torch.cat([before, patches.gather(1, kept[:, :, None].expand(-1, -1, dim))], dim=1)
