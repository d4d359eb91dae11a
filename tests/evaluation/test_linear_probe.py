"""The linear probes, against the official recipe written by hand and scikit-learn."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import train_test_split

from modeling_cyclip.evaluation import linear_probe as module
from modeling_cyclip.evaluation.linear_probe import C_GRID, linear_probe, logistic_regression
from tests.evaluation.protocol_inputs import random_labels, values


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


@pytest.fixture(scope="module", params=[2, 5])
def uneven(request):
    """Features of two orders of magnitude, as those of trained models are, whose small axes tell as much as the large ones."""
    generator = torch.Generator().manual_seed(2)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    features = draw(900, 40)
    labels = (features @ draw(40, request.param) / 40**0.5 + 0.3 * draw(900, request.param)).argmax(dim=1)
    mixed = torch.linalg.qr(draw(40, 40))[0]
    features = features * torch.logspace(1, -1, 40, dtype=torch.float64) @ mixed + 3
    return features[:500], labels[:500], features[500:], labels[500:]


def optimum(features, labels, c):
    """By Newton's method, another than the library's."""
    return LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(features, labels)


def test_logistic_regression_is_at_its_optimum(uneven, caplog):
    train, train_labels, test, test_labels = uneven
    mean, scale = train.mean(dim=0), (train - train.mean(dim=0)).square().mean().sqrt()
    train, test = (train - mean) / scale, (test - mean) / scale
    fitted, held_out = train_test_split(np.arange(500), test_size=0.2, random_state=0)
    scores = [
        optimum(train[fitted], train_labels[fitted], c).score(train[held_out], train_labels[held_out]) for c in C_GRID
    ]
    # Up to the first penalty that does worse than the best before it.
    end = next((i for i in range(1, len(scores)) if scores[i] < max(scores[:i])), len(scores))
    best = C_GRID[int(np.argmax(scores[:end]))]
    figures = logistic_regression(*uneven)
    assert figures["C"] == best
    expected = optimum(train, train_labels, best).predict(test)
    assert figures["accuracy"].value == pytest.approx((expected == test_labels.numpy()).mean(), abs=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("c", C_GRID)
def test_objective_is_within_1e_6_of_the_optimum(uneven, c):
    features, labels, *_ = uneven
    features = (features - features.mean(dim=0)) / features.std()
    inputs, variances, rotation = module._principal_axes(features)
    num_classes = len(labels.unique())
    weights = module._fit(inputs, labels, variances, c, torch.zeros(num_classes, 41, dtype=torch.float64))
    reference = optimum(features, labels, c)
    expected = _objective(reference.coef_, reference.predict_proba(features), labels, c)
    # In the features' own axes.
    rotated = (weights[:, :-1] @ rotation.T).numpy()
    if num_classes == 2:
        rotated = rotated[1:] - rotated[:1]
    probabilities = (inputs @ weights.T).softmax(dim=1).numpy()
    assert _objective(rotated, probabilities, labels, c) == pytest.approx(expected, abs=1e-6)


def _objective(weights, probabilities, labels, c):
    return log_loss(labels, probabilities) + (weights**2).sum() / (2 * c * len(labels))


def test_a_fit_that_has_not_converged_is_said(uneven, monkeypatch, caplog):
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    logistic_regression(*uneven)
    assert "has not converged at C = 0.001: after 2 steps" in caplog.text


IMAGES, LABELS = torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logistic_regression(IMAGES, torch.zeros(3).long(), IMAGES, LABELS), "two classes"),
        (
            lambda: logistic_regression(IMAGES, LABELS, IMAGES, LABELS),
            "5 training images a class, got 3 for 3 classes",
        ),
        (lambda: linear_probe(IMAGES, LABELS, IMAGES, LABELS, num_classes=2), "label 2"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
