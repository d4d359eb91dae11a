"""Every protocol against a slow reference in plain loops or scikit-learn, on embeddings with ties and equal classes."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation import ranking
from evaluation.centring import center
from evaluation.clustering import clustering
from evaluation.consistency import consistency, neighbour_votes
from evaluation.fine_coarse import fine_coarse
from evaluation.geometry import (
    captioned_alignment_uniformity,
    cyclic_gaps,
    effective_rank,
    labelled_alignment_uniformity,
    modality_gap,
)
from evaluation.image_retrieval import same_class_retrieval
from evaluation.linear_probe import C_GRID, linear_probe, logistic_regression
from evaluation.retrieval import retrieval
from evaluation.shift import BaselineLine, effective_robustness, fit_line, matched_accuracy
from evaluation.winoground import winoground
from evaluation.zero_shot import predict, zero_shot


@pytest.fixture(autouse=True, params=[2**25, 50], ids=["whole", "chunked"])
def chunks(request, monkeypatch):
    """Once in one chunk, once in chunks of a few rows."""
    monkeypatch.setattr(ranking, "MAX_SIMILARITIES", request.param)


def random_embeds(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tied_embeds(rows, dim, seed):
    """Small integers: products are exact, and many are equal. Protocols need no unit norm to rank."""
    return torch.randint(-1, 2, (rows, dim), generator=torch.Generator().manual_seed(seed)).float()


def random_labels(rows, num_classes, seed=0):
    return torch.randint(num_classes, (rows,), generator=torch.Generator().manual_seed(seed))


def values(measures):
    return {name: measure.value for name, measure in measures.items()}


def slow_order(similarities):
    """Indices from the most similar on, of equal ones the lower first."""
    return sorted(range(len(similarities)), key=lambda index: (-similarities[index], index))


# The kinds of embeddings that every ranking protocol is tried on.
KINDS = {
    "random": lambda rows, seed: random_embeds(rows, 6, seed=seed),
    "tied": lambda rows, seed: tied_embeds(rows, 4, seed),
}
both_kinds = pytest.mark.parametrize("embeds", KINDS.values(), ids=KINDS.keys())


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


def test_a_model_that_gives_all_the_same_scores_at_chance_level():
    same = torch.ones(30, 4) / 2
    labels = torch.arange(30) % 10
    assert zero_shot(same, same[:10], labels)["top1"].value == 0.1
    recalls = values(retrieval(same, same, torch.arange(30)))
    assert recalls["image_to_text_recall@1"] == recalls["text_to_image_recall@1"] == pytest.approx(1 / 30)


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


def test_random_features_are_retrieved_at_chance_level():
    images, captions = random_embeds(400, 16, seed=0), random_embeds(2000, 16, seed=1)
    measures = retrieval(images, captions, torch.arange(400).repeat_interleave(5))
    for k in (1, 5, 10):
        # One of five own captions among the first k of 2,000; the one image among the first k of 400.
        chance = 1 - math.prod((1995 - i) / (2000 - i) for i in range(k))
        assert measures[f"image_to_text_recall@{k}"].value == pytest.approx(chance, abs=4 * math.sqrt(chance / 400))
        assert measures[f"text_to_image_recall@{k}"].value == pytest.approx(k / 400, abs=4 * math.sqrt(k / 400 / 2000))


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


def test_effective_robustness_is_the_height_above_the_line():
    assert effective_robustness(20.0, 17.0, BaselineLine(1.2, -9.0)) == pytest.approx(2.0)
    line = fit_line([(10, 3), (20, 15), (30, 27)])
    assert (line.slope, line.intercept) == (pytest.approx(1.2), pytest.approx(-9))


def test_geometry_equals_loops():
    images, classes, labels = random_embeds(15, 6, seed=0), random_embeds(4, 6, seed=1), random_labels(15, 4)
    texts = classes[labels].double()
    pairs = [(i, j) for i, j in itertools.product(range(15), repeat=2) if i != j]
    images64 = images.double()
    assert labelled_alignment_uniformity(images, classes, labels) == {
        "alignment": pytest.approx(np.mean([float(images64[i] @ texts[i]) for i in range(15)]), abs=1e-6),
        "uniformity": pytest.approx(
            math.log(np.mean([math.exp(-images64[i] @ texts[j]) for i, j in pairs])), abs=1e-6
        ),
    }
    squares = [[float((images64[i] - texts[j]).square().sum()) for j in range(15)] for i in range(15)]
    assert captioned_alignment_uniformity(images, texts) == {
        "alignment": pytest.approx(np.mean([squares[i][i] for i in range(15)]), abs=1e-6),
        "uniformity": pytest.approx(math.log(np.mean([math.exp(-2 * squares[i][j]) for i, j in pairs])), abs=1e-6),
    }
    inmodal = np.mean(
        [float(images64[j] @ images64[k] - texts[j] @ texts[k]) ** 2 for j in range(15) for k in range(15)]
    )
    crossmodal = np.mean(
        [float(images64[j] @ texts[k] - images64[k] @ texts[j]) ** 2 for j in range(15) for k in range(15)]
    )
    gaps = cyclic_gaps(images, texts)
    assert gaps == {"inmodal_cyclic_gap": pytest.approx(inmodal), "crossmodal_cyclic_gap": pytest.approx(crossmodal)}
    assert modality_gap(images, texts) == pytest.approx(
        np.linalg.norm(images64.numpy().mean(0) - texts.numpy().mean(0))
    )


def test_geometry_by_hand():
    images, texts = torch.eye(2), torch.eye(2)
    assert captioned_alignment_uniformity(images, texts) == {"alignment": 0.0, "uniformity": pytest.approx(-4)}
    labelled = labelled_alignment_uniformity(images, texts, torch.tensor([0, 1]))
    assert labelled == {"alignment": 1.0, "uniformity": pytest.approx(0)}
    assert modality_gap(images, -texts) == pytest.approx(math.sqrt(2))


def test_geometry_of_a_narrow_cone_keeps_its_digits():
    # Cosines within 1e-7 of one another: float32 would give zero or noise.
    base = torch.zeros(8, dtype=torch.float64)
    base[0] = 1
    noise = 1e-4 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = F.normalize(base + noise, dim=-1)
    texts = F.normalize(base + noise.flip(0), dim=-1)
    exact = (images @ images.T - texts @ texts.T).square().mean().item()
    assert cyclic_gaps(images, texts)["inmodal_cyclic_gap"] == pytest.approx(exact, rel=1e-3)


def test_effective_rank():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(7, 5)) == pytest.approx(1, abs=1e-4)
    embeds = random_embeds(30, 6, seed=0)
    shares = np.linalg.svd(embeds.double().numpy(), compute_uv=False)
    shares /= shares.sum()
    assert effective_rank(embeds) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert effective_rank(embeds.T) == pytest.approx(effective_rank(embeds), rel=1e-5)


def test_centring_removes_the_gap():
    images = F.normalize(random_embeds(200, 8, seed=0) + 2, dim=-1)
    texts = F.normalize(random_embeds(200, 8, seed=1) - 2, dim=-1)
    centred = (center(images, images.mean(dim=0)), center(texts, texts.mean(dim=0)))
    assert modality_gap(*centred) < 0.1 < modality_gap(images, texts)
    assert torch.allclose(centred[0].norm(dim=-1), torch.ones(200))


def slow_linear_probe(train, labels, test, num_classes, epochs, batch_size):
    """nn.Linear, its own parameter groups and the learning rate written by hand at every step."""
    layer = torch.nn.Linear(train.shape[1], num_classes)
    generator = torch.Generator().manual_seed(0)
    bound = 1 / math.sqrt(train.shape[1])
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-bound, bound, generator=generator)
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups)
    steps, step = epochs * math.ceil(len(train) / batch_size), 0
    for _ in range(epochs):
        order = torch.randperm(len(train), generator=generator)
        for start in range(0, len(train), batch_size):
            rows = order[start : start + batch_size]
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * 0.005 * (1 + math.cos(math.pi * step / steps))
            loss = torch.nn.CrossEntropyLoss()(layer(train[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return layer(test).argmax(dim=1)


@pytest.fixture(scope="module")
def separable():
    labels = random_labels(260, 4)
    features = 3 * torch.eye(8)[labels] + torch.randn(260, 8, generator=torch.Generator().manual_seed(1))
    return features[:200], labels[:200], features[200:], labels[200:]


def test_linear_probe_equals_the_official_recipe(separable):
    train, train_labels, test, test_labels = separable
    measures = values(linear_probe(*separable, num_classes=4, epochs=12))
    predictions = slow_linear_probe(train, train_labels, test, 4, epochs=12, batch_size=16)
    assert measures["accuracy"] == pytest.approx((predictions == test_labels).float().mean().item())
    assert measures["mean_per_class"] == pytest.approx(balanced_accuracy_score(test_labels, predictions))
    assert measures["accuracy"] > 0.7


def test_logistic_regression_equals_scikit_learn(separable):
    train, train_labels, test, test_labels = (tensor.numpy() for tensor in separable)
    figures = logistic_regression(*separable)
    assert figures["C"] in C_GRID
    mean = train.mean(axis=0)
    scale = np.sqrt(((train - mean) ** 2).mean())
    classifier = LogisticRegression(C=figures["C"], max_iter=1000).fit((train - mean) / scale, train_labels)
    expected = classifier.score((test - mean) / scale, test_labels)
    assert figures["accuracy"].value == pytest.approx(expected)


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
        (lambda: retrieval(IMAGES, IMAGES, torch.tensor([0, 1, 1])), "Image 2 has no caption"),
        (lambda: retrieval(IMAGES, IMAGES, torch.tensor([0, 1, 3])), "images 0 to 2"),
        (lambda: labelled_alignment_uniformity(IMAGES[:1], CLASSES, LABELS[:1]), "needs two of them"),
        (lambda: captioned_alignment_uniformity(IMAGES[:1], IMAGES[:1]), "needs two of them"),
        (lambda: same_class_retrieval(IMAGES, LABELS), "two items of one class"),
        (lambda: clustering(IMAGES, torch.zeros(3).long()), "two classes"),
        (lambda: winoground(IMAGES, IMAGES), "num_examples, 2, dim"),
        (lambda: logistic_regression(IMAGES, torch.zeros(3).long(), IMAGES, LABELS), "two classes"),
        (
            lambda: logistic_regression(IMAGES, LABELS, IMAGES, LABELS),
            "5 training images a class, got 3 for 3 classes",
        ),
        (lambda: linear_probe(IMAGES, LABELS, IMAGES, LABELS, num_classes=2), "label 2"),
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
