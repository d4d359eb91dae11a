"""Zero-shot classification, consistency, fine and coarse classes and shift, against slow references."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from modeling_cyclip.evaluation.consistency import consistency, neighbour_votes
from modeling_cyclip.evaluation.zero_shot import (
    BaselineLine,
    effective_robustness,
    fine_coarse,
    fit_line,
    matched_accuracy,
    predict,
    zero_shot,
)
from tests.evaluation.protocol_inputs import (
    both_kinds,
    chances,
    over_all_orders,
    random_embeds,
    random_labels,
    slow_order,
    tied_embeds,
    values,
)


pytestmark = pytest.mark.usefixtures("chunks")


def with_duplicates(class_embeds):
    return torch.cat([class_embeds, class_embeds[:3]])


@both_kinds
def test_zero_shot_equals_scikit_learn(embeds):
    images, classes, labels = embeds(60, 0), with_duplicates(embeds(9, 1)), random_labels(60, 12)
    measures = zero_shot(images, classes, labels)
    # scikit-learn prefers the higher index among equal scores: it sees the classes in reverse.
    scores = (images @ classes.T).double().numpy()[:, ::-1]
    reverse = 11 - labels.numpy()
    for k in (1, 3, 5, 10):
        assert measures[f"top{k}"].value == pytest.approx(top_k_accuracy_score(reverse, scores, k=k, labels=range(12)))
    predictions = [slow_order(row)[0] for row in (images @ classes.T).tolist()]
    assert predict(images, classes).tolist() == predictions
    assert measures["mean_per_class"].value == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_zero_shot_by_hand():
    classes = torch.eye(3)
    images = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.1, 0.9, 0], [0, 0.2, 0.8]])
    assert values(zero_shot(images, classes, torch.tensor([0, 1, 1, 1]))) == {
        "top1": 0.5,
        "top3": 1.0,
        "mean_per_class": pytest.approx((1 + 1 / 3) / 2),
    }


def slow_vote(labels):
    while True:
        (label, most), *others = Counter(labels).most_common()
        if not others or others[0][1] < most:
            return label
        labels = labels[:-1]


@both_kinds
def test_consistency_equals_loops(embeds):
    images, references, classes = embeds(40, 0), embeds(35, 1), with_duplicates(embeds(5, 2))
    labels = random_labels(35, 8)
    measures = consistency(images, classes, references, labels)
    for k in (1, 3, 5, 10, 30):
        agreements = []
        for image in images:
            prediction = slow_order((classes @ image).tolist())[0]
            neighbours = slow_order((references @ image).tolist())[:k]
            agreements.append(prediction == slow_vote(labels[neighbours].tolist()))
        assert measures[f"k={k}"].value == pytest.approx(np.mean(agreements))


def test_votes_equal_scikit_learn_where_no_labels_tie():
    images, references, labels = random_embeds(40, 6, seed=0), random_embeds(35, 6, seed=1), random_labels(35, 2)
    votes = neighbour_votes(images, references, labels, ks=(1, 3, 7))
    for k, winners in votes.items():
        classifier = KNeighborsClassifier(k, metric="cosine").fit(references.numpy(), labels.numpy())
        assert (winners.numpy() == classifier.predict(images.numpy())).all()


def test_on_a_tie_fewer_neighbours_vote():
    references = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    votes = neighbour_votes(torch.tensor([[1.0, 0]]), references, torch.tensor([2, 1, 1, 2]), ks=(1, 2, 3, 4))
    # Of four neighbours two and two agree; of three, label 1 leads; of two one each, so that the nearest decides.
    assert {k: winner.item() for k, winner in votes.items()} == {1: 2, 2: 2, 3: 1, 4: 1}


@both_kinds
def test_fine_and_coarse_equal_loops(embeds):
    images, classes, labels = embeds(50, 0), with_duplicates(embeds(9, 1)), random_labels(50, 12)
    superclasses = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 2, 3])
    measures = values(fine_coarse(images, classes, labels, superclasses))
    for k in (1, 2, 3):
        fine, coarse = [], []
        for image, label in zip(images, labels.tolist(), strict=True):
            similarities = (classes @ image).tolist()
            siblings = [c for c in range(12) if superclasses[c] == superclasses[label]]
            fine.append(label in [siblings[i] for i in slow_order([similarities[c] for c in siblings])[:k]])
            best = [max(similarities[c] for c in range(12) if superclasses[c] == s) for s in range(4)]
            coarse.append(superclasses[label].item() in slow_order(best)[:k])
        assert measures[f"fine_top{k}"] == pytest.approx(np.mean(fine))
        assert measures[f"coarse_top{k}"] == pytest.approx(np.mean(coarse))


def test_chance_of_classes_is_the_mean_over_all_orders():
    labels, superclasses = torch.tensor([0, 1, 1, 4, 5]), torch.tensor([0, 1, 1, 2, 2, 2])

    def measured(similarities, protocol, *arguments):
        return protocol(similarities.expand(len(labels), -1), torch.eye(6), labels, *arguments)

    for protocol, *arguments in ((zero_shot,), (fine_coarse, superclasses)):
        told = measured(torch.arange(6.0), protocol, *arguments)
        guessed = over_all_orders(6, lambda order: measured(order, protocol, *arguments))  # noqa: B023
        assert chances(told) == pytest.approx(guessed)
    assert told["coarse_top1"].chance == pytest.approx((1 + 2 + 2 + 3 + 3) / 6 / 5) and told["coarse_top3"].chance == 1
    names = list("abcdef")
    assert matched_accuracy(torch.eye(6)[labels], torch.eye(6), labels, names, names[:4], labels[:3]).chance == 1 / 4


def test_shift_compares_the_same_classes():
    names = ["cat", "dog", "cow", "owl"]
    images, classes = tied_embeds(40, 4, seed=0), tied_embeds(4, 4, seed=1)
    labels = random_labels(40, 4)
    shifted_names, shifted_labels = ["owl", "cat", "dog"], torch.tensor([0, 1, 1, 0])
    measure = matched_accuracy(images, classes, labels, names, shifted_names, shifted_labels)
    hits = []
    for image, label in zip(images, labels.tolist(), strict=True):
        if label in (0, 3):
            hits.append((3, 0, 1)[slow_order([float(classes[c] @ image) for c in (3, 0, 1)])[0]] == label)
    assert measure.value == pytest.approx(np.mean(hits))
    assert len(measure) == len(hits)


def test_classes_of_one_name_are_told_apart_under_shift():
    names = ["a", "sunglasses", "sunglasses", "b"]
    images, classes, labels = tied_embeds(40, 4, seed=0), tied_embeds(4, 4, seed=1), random_labels(40, 4)
    measure = matched_accuracy(images, classes, labels, names, names, labels)
    assert len(measure) == 40 and measure.value == zero_shot(images, classes, labels)["top1"].value


def test_similarities_that_are_no_numbers_are_no_hits():
    images = torch.full((6, 4), float("nan"))
    measures = zero_shot(images, torch.eye(4), torch.zeros(6, dtype=torch.long), topk=(1, 3))
    assert measures["top1"].value == measures["top3"].value == 0


def test_effective_robustness_is_the_height_above_the_line():
    assert effective_robustness(20.0, 17.0, BaselineLine(1.2, -9.0)) == pytest.approx(2.0)
    line = fit_line([(10, 3), (20, 15), (30, 27)])
    assert (line.slope, line.intercept) == (pytest.approx(1.2), pytest.approx(-9))


IMAGES, CLASSES, LABELS = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: zero_shot(IMAGES, CLASSES, torch.tensor([0, 1, 3])),
            "Row 2 has label 3, but there are only 3 class names",
        ),
        (lambda: zero_shot(IMAGES, CLASSES, torch.tensor([0, -1, 2])), "Row 1 has label -1"),
        (lambda: zero_shot(IMAGES, CLASSES, LABELS[:2]), "as many labels"),
        (lambda: zero_shot(IMAGES[:0], CLASSES, LABELS[:0]), "no test images"),
        (lambda: consistency(IMAGES, CLASSES, IMAGES, LABELS, ks=(1, 5)), "between 1 and the 3 reference images"),
        (lambda: fine_coarse(IMAGES, CLASSES, LABELS, torch.tensor([0, 2, 2])), "Superclass 1 is empty"),
        (lambda: fine_coarse(IMAGES, CLASSES, LABELS, LABELS[:2]), "superclass each"),
        (lambda: fit_line([(10, 3), (10, 4)]), "two different accuracies"),
        (lambda: matched_accuracy(IMAGES, CLASSES, LABELS, "abc", "abd", LABELS), "'d' is not among the 3 classes"),
        (
            lambda: matched_accuracy(IMAGES[:1], CLASSES, LABELS[:1], "abc", "abc", LABELS[1:]),
            "no image of the classes",
        ),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
