"""Consistency of image and text space as an `evaluate` module."""

import datasets
import evaluate
import torch

from modeling_cyclip.evaluation.ranking import majority_votes


_CITATION = """
@inproceedings{goel2022cyclip,
  title={{CyCLIP}: Cyclic Contrastive Language-Image Pretraining},
  author={Goel, Shashank and Bansal, Hritik and Bhatia, Sumit and Rossi, Ryan A. and Vinay, Vishwa and Grover, Aditya},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}
"""

_DESCRIPTION = """
Share of images whose zero-shot label (the class name nearest to the image) is the label of the majority of their k nearest
reference images. Where several labels lead among the k, k is lowered until one does.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): zero-shot label of each image.
    references (`list[list[int]]`): labels of each image's nearest reference images, nearest first, at least k of them.
    k (`int`, *optional*, defaults to 1): number of neighbours that vote.

Returns:
    consistency (`float`): a share, in [0, 1].

Examples:

    >>> consistency = evaluate.load("evaluation/metrics/consistency")
    >>> consistency.compute(predictions=[0, 1], references=[[0, 2, 2], [2, 1, 1]], k=3)
    {'consistency': 0.5}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Consistency(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Sequence(datasets.Value("int64"))}
            ),
            reference_urls=["https://huggingface.co/papers/2205.14459"],
        )

    def _compute(self, predictions, references, k=1):
        if k < 1 or min(len(neighbours) for neighbours in references) < k:
            raise ValueError(f"k must be at least 1, and every image needs as many neighbours, got k={k}.")
        # Nearest first: the k that vote.
        votes = majority_votes(torch.tensor([neighbours[:k] for neighbours in references]), [k])[k]
        agreements = torch.tensor(predictions) == votes
        return {"consistency": agreements.sum().item() / len(agreements)}
