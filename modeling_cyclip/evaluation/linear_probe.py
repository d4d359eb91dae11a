"""Linear probes on image features: the official one, and logistic regression with a validated penalty."""

import logging
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.model_selection import train_test_split
from torch import Tensor

from .intervals import Measure
from .progress import progress_bar
from .zero_shot import check_labels


logger = logging.getLogger(__name__)

# Inverse penalties tried, strongest first, on features of mean 0 and variance 1 on average.
C_GRID = tuple(10.0**exponent for exponent in range(-3, 4))
# A fit has converged when no entry of its (scaled) gradient is above this. The objective is then within 1e-9 of its optimum.
TOLERANCE = 1e-6
MAX_ITERATIONS = 1000
# Rows whose logits are held at a time.
ROWS = 8192

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
    for _ in progress_bar(range(epochs), "linear probe", unit="epoch", delay=2):
        order = torch.randperm(len(train_features), generator=generator).to(train_features.device)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(train_features[rows], weight, bias), train_labels[rows]).backward()
            optimizer.step()
            cosine.step()
    with torch.no_grad():
        predictions = F.linear(test_features, weight, bias).argmax(dim=1)
    return _accuracies(predictions, test_labels, num_classes)


def logistic_regression(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, seed: int = 0
) -> dict[str, Measure | float]:
    r"""
    Logistic regression with an L2 penalty (CLIP, section 3.2; the objective is scikit-learn's). The penalty is the one that
    does best on a held-out fifth of the training images; with it all training images are fitted. Features are moved to mean
    zero and divided by one number, so that the same penalties suit models of any scale. Every fit is run to its optimum and
    starts from the one before; a warning names a fit that has not reached it.

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
    classes, labels = train_labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("A linear probe needs training images of at least two classes.")
    if len(labels) < MIN_IMAGES_PER_CLASS * len(classes):
        raise ValueError(
            f"To choose a penalty takes {MIN_IMAGES_PER_CLASS} training images a class, got {len(labels)} for "
            f"{len(classes)} classes."
        )
    mean = train_features.mean(dim=0)
    scale = (train_features - mean).square().mean().sqrt()
    inputs, variances, rotation = _principal_axes((train_features - mean) / scale)
    fitted, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed)
    fitted_inputs, held_out_inputs = inputs[fitted], inputs[held_out]

    best_score, best, weights = -1.0, C_GRID[0], inputs.new_zeros(len(classes), inputs.shape[1], dtype=torch.float64)
    # Once a weaker penalty is worse, still weaker ones are not tried.
    for c in progress_bar(iter(C_GRID), "logistic regression", unit=" penalties"):
        weights = _fit(fitted_inputs, labels[fitted], variances, c, weights)
        score = (_predict(held_out_inputs, weights) == labels[held_out]).double().mean().item()
        if score < best_score:
            break
        if score > best_score:
            best_score, best, best_weights = score, c, weights
    weights = _fit(inputs, labels, variances, best, best_weights)
    test = _with_constant(((test_features - mean) / scale) @ rotation)
    return {**_accuracies(classes[_predict(test, weights)], test_labels, len(classes)), "C": best}


def _with_constant(features: Tensor) -> Tensor:
    """Features and a column of ones, whose weights are the biases."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _predict(inputs: Tensor, weights: Tensor) -> Tensor:
    return (inputs @ weights.T.to(inputs.dtype)).argmax(dim=1)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Centred features in their principal axes, with a constant, the mean square of each of these, and the rotation. A rotation
    leaves an L2 penalty as it is.
    """
    covariance = sum(rows.double().T @ rows.double() for rows in features.split(ROWS)) / len(features)
    variances, axes = torch.linalg.eigh(covariance)
    rotation = axes.to(features.dtype)
    return _with_constant(features @ rotation), torch.cat([variances.clamp(min=0), variances.new_ones(1)]), rotation


def _fit(inputs: Tensor, labels: Tensor, variances: Tensor, c: float, start: Tensor) -> Tensor:
    """
    The weights `(num_classes, dim + 1)` with the least mean cross-entropy plus ||weights||² / 2Cn, biases unpenalised, by
    L-BFGS from `start`. Its steps are taken in weights scaled by the root of the loss's curvature in each principal axis,
    so that axes of any variance converge alike: tens of steps do where plain L-BFGS takes hundreds or thousands.
    """
    num_classes, num_rows = len(start), len(inputs)
    # With two classes, scikit-learn penalises one vector, the difference of both.
    penalty = (2 if num_classes == 2 else 1) / (c * num_rows)
    penalties = torch.full_like(variances, penalty)
    penalties[-1] = 0

    def loss_and_gradient(weights: Tensor) -> tuple[float, Tensor, float]:
        """The objective, its gradient, and the mean of p(1 - p), which is the softmax's curvature."""
        loss, gradient, curvature = 0.0, penalties * weights, 0.0
        for rows, own in zip(inputs.split(ROWS), labels.split(ROWS), strict=True):
            rows = rows.double()
            log_probabilities = (rows @ weights.T).log_softmax(dim=1)
            loss -= log_probabilities.gather(1, own[:, None]).sum().item() / num_rows
            probabilities = log_probabilities.exp_()
            curvature += (probabilities * (1 - probabilities)).mean(dim=1).sum().item() / num_rows
            probabilities[torch.arange(len(own)), own] -= 1
            gradient = gradient + probabilities.T @ rows / num_rows
        return loss + 0.5 * (penalties * weights.square()).sum().item(), gradient, curvature

    *_, curvature = loss_and_gradient(start)
    scales = (curvature * variances + penalty).sqrt()

    def scaled(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient, _ = loss_and_gradient(torch.from_numpy(flat).to(inputs.device).view_as(start) / scales)
        return loss, (gradient / scales).flatten().cpu().numpy()

    options = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0}
    found = minimize(scaled, (start * scales).flatten().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    if (gradient := np.abs(found.jac).max()) > TOLERANCE:
        logger.warning(
            f"The logistic regression has not converged at C = {c:g}: after {found.nit:,} steps its gradient is "
            f"{gradient:.1e}, above {TOLERANCE:.0e}. Its accuracy may be another one at the optimum."
        )
    return torch.from_numpy(found.x).to(inputs.device).view_as(start) / scales


def _accuracies(predictions: Tensor, labels: Tensor, num_classes: int) -> dict[str, Measure]:
    right, chance = (predictions == labels).float(), 1 / num_classes
    return {"accuracy": Measure(right, chance=chance), "mean_per_class": Measure(right, labels, chance)}
