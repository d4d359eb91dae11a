"""Both ways to the softmaxes, in one block and in several, and which of them is taken."""

import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip import blockwise, cyclip_loss, softmaxes
from modeling_cyclip.softmaxes import OneExponential, TwoExponentials


WAYS = {"one": OneExponential, "two": TwoExponentials}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(blockwise, "OneExponential", WAYS[request.param])


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(softmaxes, "MAX_STORED_LOGITS", 0)
        monkeypatch.setattr(softmaxes, "BLOCK_BYTES", 8 * 60 * 7)  # seven rows of 60 logits in float64


def embeds_of(kind, n=60, dim=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, dim, generator=generator, dtype=dtype) for _ in range(2))
    if kind == "solved":
        texts = images + 0.05 * texts
    if kind == "cone":
        images, texts = 0.05 * images + 1, 0.05 * texts + 1
    return [F.normalize(x, dim=-1).requires_grad_() for x in (images, texts)]


def reference(image_embeds, text_embeds, logit_scale):
    """Without the log-sum-exp of a row, of which a solved batch would leave nothing but rounding."""
    logits = logit_scale * image_embeds @ text_embeds.T
    pairs = torch.eye(len(logits), dtype=torch.bool)
    return sum(
        torch.log1p((x - x.diagonal()[:, None]).exp().masked_fill(pairs, 0.0).sum(dim=1)).mean() / 2
        for x in (logits, logits.T)
    )


@pytest.mark.parametrize("kind", ["random", "solved", "cone"])
@pytest.mark.parametrize("scale", [1.0, 14.3, 75.0, 100.0])
def test_value_and_gradients_are_those_of_dense_matrices(way, blocks, kind, scale):
    inputs = [*embeds_of(kind), torch.tensor(scale, dtype=torch.float64, requires_grad=True)]
    expected = reference(*inputs)
    loss = blockwise.contrastive_loss(*inputs, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11, abs=1e-300)
    gradients = torch.autograd.grad(loss, inputs)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        assert (actual - wanted).norm() <= 1e-10 * wanted.norm()


@pytest.mark.parametrize("scale", [14.3, 75.0, 100.0])
def test_a_solved_batch_keeps_its_digits_in_float32(way, blocks, scale):
    embeds = embeds_of("solved")
    exact = [*embeds, torch.tensor(scale, dtype=torch.float64, requires_grad=True)]
    inputs = [x.detach().float().requires_grad_() for x in exact]
    expected = reference(*exact)
    loss = blockwise.contrastive_loss(*inputs, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, inputs)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert (actual - wanted).norm() <= 1e-4 * wanted.norm()


def test_pairs_that_point_away_take_the_way_that_cannot_underflow(blocks):
    # At scale 100 the pair's exponential is exp(-200) of the largest one.
    images, _ = embeds_of("random", dtype=torch.float32)
    inputs = [images, -images.detach(), torch.tensor(100.0, requires_grad=True)]
    expected = reference(*(x.double() for x in inputs))
    loss = blockwise.contrastive_loss(*inputs, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.autograd.grad(loss, images)[0].isfinite().all()


def test_embeddings_longer_than_one_do_not_overflow():
    images, texts = (20 * x.detach().float() for x in embeds_of("random"))
    parts = cyclip_loss(images.requires_grad_(), texts, 1.0)
    expected = reference(images.double(), texts.double(), 1.0)
    assert parts.contrastive_loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_stays_so():
    images, texts = (x.detach().float() for x in embeds_of("random"))
    images[3, 4] = float("nan")
    assert cyclip_loss(images, texts, 14.3).loss.isnan()
    assert cyclip_loss(images, texts, 14.3, inmodal_cyclic_weight=0.0, crossmodal_cyclic_weight=0.0).loss.isnan()
