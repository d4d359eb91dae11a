"""The linear probes, against the official recipe written by hand and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

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
