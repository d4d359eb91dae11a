"""Linear probes on image features: the official one, and logistic regression with a validated penalty."""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor

from .intervals import Measure
from .zero_shot import check_labels


# Inverse penalties tried, strongest first, on features of mean 0 and variance 1 on average.
C_GRID = tuple(10.0**exponent for exponent in range(-3, 4))
MAX_ITERATIONS = 200

# With fewer training images a class, on average, a held-out fifth of them says nothing of a penalty.
MIN_IMAGES_PER_CLASS = 5


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    *,
    epochs: int = 32,
    batch_size: int = 16,
    learning_rate: float = 0.005,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> dict[str, Measure]:
    r"""
    The official probe: one linear layer on features before normalisation (CyCLIP, section 4.2). AdamW trains it with a
    cosine schedule to zero, and with weight decay on the weights and not on the biases.

    Args:
        train_features (`torch.Tensor` of shape `(num_train, dim)`):
            Features of the training images, before normalisation.
        train_labels (`torch.Tensor` of shape `(num_train,)`):
            Their classes.
        test_features (`torch.Tensor` of shape `(num_test, dim)`):
            Features of the test images, before normalisation.
        test_labels (`torch.Tensor` of shape `(num_test,)`):
            Their classes.
        num_classes (`int`):
            Number of classes.
        epochs, batch_size, learning_rate, weight_decay (*optional*):
            The official values are the defaults.
        seed (`int`, *optional*, defaults to 0):
            Seed of the initial weights and of the order.

    Returns:
        `dict[str, Measure]`: `accuracy` and `mean_per_class`.

    Raises:
        `ValueError`: a label that is no class.
    """
    check_labels(train_labels, len(train_features), num_classes)
    check_labels(test_labels, len(test_features), num_classes)
    generator = torch.Generator().manual_seed(seed)
    # The initial values of nn.Linear, from this generator.
    bound = 1 / math.sqrt(train_features.shape[1])
    weight, bias = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator).to(train_features.device).requires_grad_()
        for shape in ((num_classes, train_features.shape[1]), (num_classes,))
    )
    groups = [{"params": [weight], "weight_decay": weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    num_steps = epochs * math.ceil(len(train_features) / batch_size)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / num_steps)) / 2)
    for _ in range(epochs):
        order = torch.randperm(len(train_features), generator=generator).to(train_features.device)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(train_features[rows], weight, bias), train_labels[rows]).backward()
            optimizer.step()
            cosine.step()
    with torch.no_grad():
        predictions = F.linear(test_features, weight, bias).argmax(dim=1)
    return _accuracies(predictions, test_labels)


def logistic_regression(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, seed: int = 0
) -> dict[str, Measure | float]:
    r"""
    Logistic regression by L-BFGS (CLIP, section 3.2, by scikit-learn). The penalty is the one that does best on a held-out
    fifth of the training images; with it all training images are fitted. Features are moved to mean zero and divided by
    one number, so that the same penalties suit models of any scale and few steps are needed.

    Args:
        train_features, train_labels, test_features, test_labels (`torch.Tensor`):
            As in [`linear_probe`].
        seed (`int`, *optional*, defaults to 0):
            Seed of that choice.

    Returns:
        `dict[str, Measure | float]`: `accuracy`, `mean_per_class`, and `C`, the inverse penalty that was chosen.

    Raises:
        `ValueError`: training images of fewer than two classes, or fewer than `MIN_IMAGES_PER_CLASS` a class on average.
    """
    mean = train_features.mean(dim=0)
    scale = (train_features - mean).square().mean().sqrt()
    features, test = (((part - mean) / scale).cpu().numpy() for part in (train_features, test_features))
    labels = train_labels.cpu().numpy()
    num_classes = len(np.unique(labels))
    if num_classes < 2:
        raise ValueError("A linear probe needs training images of at least two classes.")
    if len(labels) < MIN_IMAGES_PER_CLASS * num_classes:
        raise ValueError(
            f"To choose a penalty takes {MIN_IMAGES_PER_CLASS} training images a class, got {len(labels)} for "
            f"{num_classes} classes."
        )
    fitted, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed)
    classifier = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    best_score, best = -1.0, C_GRID[0]
    # Weak penalties need many steps, and the validation decides what a fit that has not converged is worth.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        # Each fit starts from the one before. Once a weaker penalty is worse, still weaker ones are not tried.
        for c in C_GRID:
            classifier.set_params(C=c).fit(features[fitted], labels[fitted])
            score = classifier.score(features[held_out], labels[held_out])
            if score < best_score:
                break
            if score > best_score:
                best_score, best = score, c
        final = LogisticRegression(C=best, max_iter=MAX_ITERATIONS).fit(features, labels)
    return {**_accuracies(torch.from_numpy(final.predict(test)), test_labels.cpu()), "C": best}


def _accuracies(predictions: Tensor, labels: Tensor) -> dict[str, Measure]:
    right = (predictions == labels).float()
    return {"accuracy": Measure(right), "mean_per_class": Measure(right, labels)}
