"""Geometry of the two spaces, against loops and by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip.evaluation.geometry import (
    captioned_alignment_uniformity,
    center,
    cyclic_gaps,
    effective_rank,
    labelled_alignment_uniformity,
    modality_gap,
)
from tests.evaluation.protocol_inputs import random_embeds, random_labels


pytestmark = pytest.mark.usefixtures("chunks")


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


class OnMPS(torch.Tensor):
    """Stands in for a tensor on a device without float64."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_devices_without_float64():
    images, classes, labels = random_embeds(15, 6, seed=0), random_embeds(4, 6, seed=1), random_labels(15, 4)

    def figures(images, classes, labels, texts):
        return (
            labelled_alignment_uniformity(images, classes, labels), captioned_alignment_uniformity(images, texts),
            modality_gap(images, texts), cyclic_gaps(images, texts), effective_rank(images),
        )  # fmt: skip

    arguments = images, classes, labels, classes[labels]
    assert figures(*(argument.as_subclass(OnMPS) for argument in arguments)) == figures(*arguments)


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


IMAGES, CLASSES, LABELS = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: labelled_alignment_uniformity(IMAGES[:1], CLASSES, LABELS[:1]), "needs two of them"),
        (lambda: captioned_alignment_uniformity(IMAGES[:1], IMAGES[:1]), "needs two of them"),
    ],
)
def test_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
