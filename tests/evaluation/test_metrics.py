from pathlib import Path

import evaluate
import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip.evaluation.consistency import consistency
from modeling_cyclip.evaluation.ranking import nearest
from modeling_cyclip.evaluation.retrieval import retrieval
from modeling_cyclip.evaluation.zero_shot import predict


METRICS = Path(__file__).parents[2] / "evaluation" / "metrics"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    cache = tmp_path_factory.mktemp("metrics")
    return lambda name: evaluate.load(str(METRICS / name), cache_dir=str(cache))


def embeds(rows, seed):
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_consistency_equals_the_protocol(load):
    images, references, classes = embeds(30, 0), embeds(25, 1), embeds(4, 2)
    labels = torch.randint(4, (25,), generator=torch.Generator().manual_seed(3))
    expected = consistency(images, classes, references, labels, ks=(1, 4, 10))
    neighbours = labels[nearest(images @ references.T, 10)]
    metric = load("consistency")
    for k in (1, 4, 10):
        score = metric.compute(predictions=predict(images, classes).tolist(), references=neighbours.tolist(), k=k)
        assert score == {"consistency": pytest.approx(expected[f"k={k}"].value)}


def test_recall_equals_the_protocol(load):
    images, captions = embeds(12, 0), embeds(30, 1)
    owners = torch.arange(30) % 12
    expected = retrieval(images, captions, owners)
    own = [(owners == image).nonzero()[:, 0].tolist() for image in range(12)]
    metric = load("retrieval_recall")
    scores = metric.compute(predictions=(images @ captions.T).tolist(), references=own)
    assert scores == {f"recall@{k}": pytest.approx(expected[f"image_to_text_recall@{k}"].value) for k in (1, 5, 10)}
    scores = metric.compute(predictions=(captions @ images.T).tolist(), references=[[o] for o in owners.tolist()])
    assert scores == {f"recall@{k}": pytest.approx(expected[f"text_to_image_recall@{k}"].value) for k in (1, 5, 10)}


def test_examples_of_the_cards(load):
    assert load("consistency").compute(predictions=[0, 1], references=[[0, 2, 2], [2, 1, 1]], k=3) == {
        "consistency": 0.5
    }
    scores = load("retrieval_recall").compute(
        predictions=[[0.9, 0.1, 0.3], [0.2, 0.8, 0.7]], references=[[0, 1], [2]], ks=[1, 2]
    )
    assert scores == {"recall@1": 0.5, "recall@2": 1.0}


def test_metric_faults(load):
    with pytest.raises(ValueError, match="as many neighbours"):
        load("consistency").compute(predictions=[0], references=[[0, 1]], k=3)
    with pytest.raises(ValueError, match="at least one right candidate"):
        load("retrieval_recall").compute(predictions=[[0.5]], references=[[]])
