"""Clustering inside one modality."""

from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor


def clustering(embeds: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    r"""
    k-means with as many clusters as there are labels, best of four starts, against the labels.

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
    clusters = KMeans(num_clusters, n_init=4, random_state=seed).fit_predict(embeds.cpu().numpy())
    score = normalized_mutual_info_score(labels.cpu().numpy(), clusters)
    return {"normalized_mutual_information": float(score)}
