"""Retrieval between and within modalities, clustering and Winoground, against slow references."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from modeling_cyclip.evaluation.geometry import clustering
from modeling_cyclip.evaluation.retrieval import retrieval, same_class_retrieval, winoground
from modeling_cyclip.evaluation.zero_shot import zero_shot
from tests.evaluation.protocol_inputs import (
    both_kinds,
    chances,
    over_all_orders,
    random_embeds,
    random_labels,
    slow_order,
    values,
)


pytestmark = pytest.mark.usefixtures("chunks")


@both_kinds
def test_retrieval_equals_loops(embeds):
    # Image 0 has one caption, image 1 two, ..., in no order.
    owners = torch.arange(12).repeat_interleave(torch.arange(12) % 5 + 1)
    owners = owners[torch.randperm(len(owners), generator=torch.Generator().manual_seed(0))]
    images, captions = embeds(12, 0), embeds(len(owners), 1)
    measures = values(retrieval(images, captions, owners))
    for k in (1, 5, 10):
        hits = [image in owners[slow_order((captions @ images[image]).tolist())[:k]] for image in range(12)]
        assert measures[f"image_to_text_recall@{k}"] == pytest.approx(np.mean(hits))
        hits = [
            owner in slow_order((images @ caption).tolist())[:k]
            for caption, owner in zip(captions, owners, strict=True)
        ]
        assert measures[f"text_to_image_recall@{k}"] == pytest.approx(np.mean(hits))


def test_chance_of_retrieval_is_the_mean_over_all_orders():
    owners, ks = torch.tensor([0, 1, 1, 2, 2, 2]), (1, 2, 5)
    told = chances(retrieval(torch.eye(3), torch.eye(3)[owners], owners, ks))
    by_image = over_all_orders(6, lambda order: retrieval(order.expand(3, -1), torch.eye(6), owners, ks))
    by_caption = over_all_orders(3, lambda order: retrieval(torch.eye(3), order.expand(6, -1), owners, ks))
    for k in ks:
        assert told[f"image_to_text_recall@{k}"] == pytest.approx(by_image[f"image_to_text_recall@{k}"])
        assert told[f"text_to_image_recall@{k}"] == pytest.approx(by_caption[f"text_to_image_recall@{k}"])


def test_random_features_are_retrieved_at_chance_level():
    images, captions = random_embeds(400, 16, seed=0), random_embeds(2000, 16, seed=1)
    measures = retrieval(images, captions, torch.arange(400).repeat_interleave(5))
    for k in (1, 5, 10):
        # One of five own captions among the first k of 2,000; the one image among the first k of 400.
        chance = 1 - math.prod((1995 - i) / (2000 - i) for i in range(k))
        assert measures[f"image_to_text_recall@{k}"].value == pytest.approx(chance, abs=4 * math.sqrt(chance / 400))
        assert measures[f"text_to_image_recall@{k}"].value == pytest.approx(k / 400, abs=4 * math.sqrt(k / 400 / 2000))


def test_a_model_that_gives_all_the_same_scores_at_chance_level():
    same = torch.ones(30, 4) / 2
    labels = torch.arange(30) % 10
    assert zero_shot(same, same[:10], labels)["top1"].value == 0.1
    recalls = values(retrieval(same, same, torch.arange(30)))
    assert recalls["image_to_text_recall@1"] == recalls["text_to_image_recall@1"] == pytest.approx(1 / 30)


@both_kinds
def test_same_class_retrieval_equals_loops(embeds):
    items, labels = embeds(30, 0), random_labels(30, 6)
    labels[7] = 99
    precisions = []
    for query in range(30):
        others = [index for index in slow_order((items @ items[query]).tolist()) if index != query]
        places = [place for place, index in enumerate(others, start=1) if labels[index] == labels[query]]
        if places:
            precisions.append(np.mean([found / place for found, place in enumerate(places, start=1)]))
    measure = same_class_retrieval(items, labels)["mean_average_precision"]
    assert len(measure) == len(precisions) < 30
    assert measure.value == pytest.approx(np.mean(precisions))


def test_same_class_retrieval_equals_scikit_learn():
    items, labels = random_embeds(30, 6, seed=0), random_labels(30, 3)
    similarities = (items @ items.T).numpy()
    precisions = [
        average_precision_score(np.delete(labels == labels[query], query), np.delete(similarities[query], query))
        for query in range(30)
    ]
    assert same_class_retrieval(items, labels)["mean_average_precision"].value == pytest.approx(np.mean(precisions))


def test_clustering_finds_separate_clusters():
    labels = torch.arange(60) % 3
    noise = 0.05 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    embeds = F.normalize(torch.eye(3)[labels] + noise, dim=-1)
    assert clustering(embeds, labels)["normalized_mutual_information"] == pytest.approx(1)
    assert clustering(random_embeds(60, 6, seed=0), labels)["normalized_mutual_information"] < 0.2


@both_kinds
def test_winoground_equals_loops(embeds):
    images, captions = embeds(40, 0).unflatten(0, (-1, 2)), embeds(40, 1).unflatten(0, (-1, 2))
    texts, pictures = [], []
    for (i0, i1), (c0, c1) in zip(images, captions, strict=True):
        texts.append(bool(i0 @ c0 > i0 @ c1 and i1 @ c1 > i1 @ c0))
        pictures.append(bool(i0 @ c0 > i1 @ c0 and i1 @ c1 > i0 @ c1))
    assert values(winoground(images, captions)) == {
        "text_score": pytest.approx(np.mean(texts)),
        "image_score": pytest.approx(np.mean(pictures)),
        "group_score": pytest.approx(np.mean(np.logical_and(texts, pictures))),
    }


IMAGES, LABELS = torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval(IMAGES, IMAGES, torch.tensor([0, 1, 1])), "Image 2 has no caption"),
        (lambda: retrieval(IMAGES, IMAGES, torch.tensor([0, 1, 3])), "images 0 to 2"),
        (lambda: same_class_retrieval(IMAGES, LABELS), "two items of one class"),
        (lambda: clustering(IMAGES, torch.zeros(3).long()), "two classes"),
        (lambda: winoground(IMAGES, IMAGES), "num_examples, 2, dim"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
