"""
Geometry of the joint space: alignment, uniformity, modality gap, cyclic gaps and effective rank, all in float64, and so
on the CPU, since not every device has it. Beside them embeddings without their modality's mean, which closes the modality
gap without training, and clusters inside one modality.
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from ..loss import cyclic_regularisers
from .progress import progress_bar
from .ranking import similarity_chunks
from .zero_shot import check_labels


def labelled_alignment_uniformity(image_embeds: Tensor, class_embeds: Tensor, labels: Tensor) -> dict[str, float]:
    r"""
    The paper's form for labelled images (CyCLIP, section 5.3), with T_label(i) the embedding of image i's class:

        alignment  = mean over i of ⟨I_i, T_label(i)⟩
        uniformity = log of the mean over i ≠ j of exp(−⟨I_i, T_label(j)⟩)

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm image embeddings, at least two.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`):
            Unit-norm class embeddings.
        labels (`torch.Tensor` of shape `(num_images,)`):
            Classes of the images.

    Returns:
        `dict[str, float]`: `alignment`, in [-1, 1], higher is better aligned, and `uniformity`, in nats.

    Raises:
        `ValueError`: fewer than two images, a label that is no class.
    """
    image_embeds, class_embeds, labels = image_embeds.cpu().double(), class_embeds.cpu().double(), labels.cpu()
    check_labels(labels, len(image_embeds), len(class_embeds))
    class_sizes = torch.bincount(labels, minlength=len(class_embeds)).double()
    matched, total = 0.0, 0.0
    for rows, similarities in similarity_chunks(image_embeds, class_embeds):
        own = similarities.gather(1, labels[rows, None])
        matched += own.sum().item()
        # The images j of a class share T: a sum over classes weighted by their sizes, without the pair j = i.
        total += (torch.exp(-similarities) @ class_sizes).sum().item() - torch.exp(-own).sum().item()
    return _alignment_uniformity(matched, total, len(image_embeds))


def captioned_alignment_uniformity(image_embeds: Tensor, text_embeds: Tensor) -> dict[str, float]:
    r"""
    The form for image-caption pairs (Wang and Isola, 2020, across modalities, as in the official code):

        alignment  = mean over i of ‖I_i − T_i‖²
        uniformity = log of the mean over i ≠ j of exp(−2‖I_i − T_j‖²)

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, dim)`):
            Unit-norm image embeddings, at least two.
        text_embeds (`torch.Tensor` of shape `(num_pairs, dim)`):
            Unit-norm text embeddings, row by row the captions.

    Returns:
        `dict[str, float]`: `alignment`, in [0, 4], lower is better aligned, and `uniformity`, in nats.

    Raises:
        `ValueError`: fewer than two pairs.
    """
    image_embeds, text_embeds = image_embeds.cpu().double(), text_embeds.cpu().double()
    matched, total = (image_embeds - text_embeds).square().sum().item(), 0.0
    for rows, similarities in similarity_chunks(image_embeds, text_embeds):
        # ‖I − T‖² = 2 − 2⟨I, T⟩ for unit norms.
        potential = similarities.mul_(4).sub_(4).exp_()
        total += (potential.sum() - potential.diagonal(rows.start).sum()).item()
    return _alignment_uniformity(matched, total, len(image_embeds))


def modality_gap(image_embeds: Tensor, text_embeds: Tensor) -> float:
    """Distance of the means of both modalities (Liang et al., 2022, section 2)."""
    return (image_embeds.cpu().double().mean(dim=0) - text_embeds.cpu().double().mean(dim=0)).norm().item()


def cyclic_gaps(image_embeds: Tensor, text_embeds: Tensor) -> dict[str, float]:
    r"""
    The two quantities that CyCLIP's training lowers, as means over all N² pairs (the paper's terms over N), so that sets
    of different size compare:

        in-modal    = mean over j, k of (⟨I_j,I_k⟩ − ⟨T_j,T_k⟩)²
        cross-modal = mean over j, k of (⟨I_j,T_k⟩ − ⟨I_k,T_j⟩)²

    Args:
        image_embeds (`torch.Tensor` of shape `(num_pairs, dim)`):
            Unit-norm image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_pairs, dim)`):
            Unit-norm text embeddings, row by row the captions.

    Returns:
        `dict[str, float]`: `inmodal_cyclic_gap` and `crossmodal_cyclic_gap`.
    """
    inmodal, crossmodal = cyclic_regularisers(image_embeds.cpu().double(), text_embeds.cpu().double())
    return {
        "inmodal_cyclic_gap": inmodal.item() / len(image_embeds),
        "crossmodal_cyclic_gap": crossmodal.item() / len(image_embeds),
    }


def effective_rank(embeds: Tensor) -> float:
    r"""
    The number of directions in use, from 1 to `dim`: exp of the entropy of the singular values, taken as shares of their
    sum (Roy and Vetterli, 2007).

    Args:
        embeds (`torch.Tensor` of shape `(num_rows, dim)`):
            Embeddings.

    Returns:
        `float`
    """
    embeds = embeds.cpu().double()
    # The smaller of both products has the same squares of singular values.
    gram = embeds.T @ embeds if embeds.shape[0] > embeds.shape[1] else embeds @ embeds.T
    singular_values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular_values / singular_values.sum()
    return torch.special.entr(shares).sum().exp().item()


def center(embeds: Tensor, mean: Tensor) -> Tensor:
    r"""
    Embeddings with the mean of their modality removed and unit norm again. What a training is said to gain by closing the
    gap must exceed what this gives without training (Liang et al., 2022, section 4.2).

    Args:
        embeds (`torch.Tensor` of shape `(..., dim)`):
            Unit-norm embeddings.
        mean (`torch.Tensor` of shape `(dim,)`):
            Mean of the modality's embeddings.

    Returns:
        `torch.Tensor` of shape `(..., dim)`.
    """
    return F.normalize(embeds - mean, dim=-1)


def clustering(embeds: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    r"""
    How well k-means finds the labels, with as many clusters as there are labels and the best of four starts.

    Args:
        embeds (`torch.Tensor` of shape `(num_items, dim)`):
            Unit-norm embeddings of one modality.
        labels (`torch.Tensor` of shape `(num_items,)`):
            Classes of the items.
        seed (`int`, *optional*, defaults to 0):
            Seed of the starts.

    Returns:
        `dict[str, float]`: `normalized_mutual_information`, in [0, 1].

    Raises:
        `ValueError`: items of fewer than two classes.
    """
    num_clusters = len(labels.unique())
    if num_clusters < 2:
        raise ValueError("Clustering needs items of at least two classes.")
    inputs, random_state = embeds.cpu().numpy(), np.random.RandomState(seed)
    # One by one, as `n_init=4` runs them, for the sake of the bar.
    starts = (KMeans(num_clusters, n_init=1, random_state=random_state) for _ in range(4))
    fits = [start.fit(inputs) for start in progress_bar(starts, "k-means", total=4, unit="start")]
    best = min(fits, key=lambda fit: fit.inertia_)
    score = normalized_mutual_info_score(labels.cpu().numpy(), best.labels_)
    return {"normalized_mutual_information": float(score)}


def _alignment_uniformity(matched: float, total: float, num_pairs: int) -> dict[str, float]:
    if num_pairs < 2:
        raise ValueError(f"Uniformity is a mean over pairs of different rows and needs two of them, got {num_pairs}.")
    mean = torch.tensor(total / (num_pairs * (num_pairs - 1)), dtype=torch.float64)
    return {"alignment": matched / num_pairs, "uniformity": mean.log().item()}
