"""Recall at k of retrieval between images and captions as an `evaluate` module."""

import datasets
import evaluate
import numpy as np


_CITATION = """
@inproceedings{karpathy2015deep,
  title={Deep Visual-Semantic Alignments for Generating Image Descriptions},
  author={Karpathy, Andrej and Fei-Fei, Li},
  booktitle={Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year={2015}
}
"""

_DESCRIPTION = """
Share of queries for which one of the right candidates is among the k most similar: image to text with the captions of an
image as its right candidates, text to image with the one image of a caption.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): similarity of each query to all candidates.
    references (`list[list[int]]`): indices of each query's right candidates, at least one.
    ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): numbers of candidates looked at.

Returns:
    recall@k (`float`) for each k: a share, in [0, 1]. Of equal similarities the lower index comes first.

Examples:

    >>> recall = evaluate.load("evaluation/metrics/retrieval_recall")
    >>> recall.compute(predictions=[[0.9, 0.1, 0.3], [0.2, 0.8, 0.7]], references=[[0, 1], [2]], ks=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RetrievalRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/1412.2306"],
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        if min(len(right) for right in references) == 0:
            raise ValueError("Every query needs at least one right candidate.")
        ranks = np.array([_best_rank(*query) for query in zip(predictions, references, strict=True)])
        return {f"recall@{k}": float((ranks < k).mean()) for k in ks}


def _best_rank(similarities, right):
    order = np.argsort(-np.asarray(similarities), kind="stable")
    return int(np.flatnonzero(np.isin(order, right))[0])
