"""The bound on the cyclic gradient against autograd of the paper's formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip import cyclip_loss
from tests.modeling_cyclip.test_loss import dense_parts, gradients, random_embeds


def tangential(gradient, embeds):
    """What normalisation lets through, by its own derivative."""
    raw = embeds.detach().requires_grad_()
    (passed,) = torch.autograd.grad(F.normalize(raw, dim=-1), raw, gradient)
    return passed


def lengths(losses, embeds):
    """Of the gradients of several losses at all embeddings, along the sphere."""
    for loss in losses:
        pairs = zip(gradients(loss, embeds), embeds, strict=True)
        yield torch.cat([tangential(*pair) for pair in pairs]).norm()


# On both sides of N = d and of N = 1.5 d.
@pytest.mark.parametrize("n, dim", [(24, 32), (40, 32), (96, 16)])
@pytest.mark.parametrize("weights", [(0.25, 0.25), (8.0, 0.5), (0.0, 4.0)])
@pytest.mark.parametrize("share", [0.01, 0.1, 50.0])
def test_the_cyclic_gradient_is_lowered_to_its_share(n, dim, weights, share):
    inputs = [*random_embeds(n, dim), torch.tensor(14.3, dtype=torch.float64, requires_grad=True)]
    contrastive, inmodal, crossmodal = dense_parts(*inputs)
    cyclic = weights[0] * inmodal + weights[1] * crossmodal
    own, others = lengths((contrastive, cyclic), inputs[:2])
    factor = min(1.0, (share * own / others).item())
    expected = contrastive + factor * cyclic

    output = cyclip_loss(
        *inputs,
        inmodal_cyclic_weight=weights[0],
        crossmodal_cyclic_weight=weights[1],
        cyclic_max_gradient_share=share,
    )

    assert (factor < 1) == (share < 1)
    assert output.cyclic_gradient_factor.item() == pytest.approx(factor, rel=1e-11)
    reported = output.loss, output.contrastive_loss, output.inmodal_cyclic_loss, output.crossmodal_cyclic_loss
    for actual, reference in zip(reported, (expected, contrastive, inmodal, crossmodal), strict=True):
        assert actual.item() == pytest.approx(reference.item(), rel=1e-11)
    for actual, reference in zip(gradients(output.loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-12)


def test_the_contrastive_gradient_of_augmented_views_counts_with_the_pairs_own():
    inputs = [*random_embeds(24, 32), *random_embeds(24, 32, seed=1)]
    views = {"augmented_image_embeds": inputs[2], "augmented_text_embeds": inputs[3]}
    clip = cyclip_loss(*inputs[:2], 14.3, inmodal_cyclic_weight=0, crossmodal_cyclic_weight=0, **views).loss
    _, inmodal, crossmodal = dense_parts(*inputs[:2], 14.3)
    own, others = lengths((clip, 0.25 * (inmodal + crossmodal)), inputs[:2])
    expected = clip + 0.1 * (own / others).item() * 0.25 * (inmodal + crossmodal)

    output = cyclip_loss(*inputs[:2], 14.3, cyclic_max_gradient_share=0.1, **views)

    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-11)
    for actual, reference in zip(gradients(output.loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-12)


def test_the_loss_is_the_same_where_no_gradient_is_asked_for():
    inputs = random_embeds(24, 32, torch.float32)
    trained = cyclip_loss(*inputs, 14.3, cyclic_max_gradient_share=0.1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            evaluated = cyclip_loss(*(tensor * 1 for tensor in inputs), 14.3, cyclic_max_gradient_share=0.1)
        assert evaluated.loss.item() == trained.loss.item() and not evaluated.loss.requires_grad


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_collapse_is_left_behind(noise):
    generator = torch.Generator().manual_seed(0)
    embeds = [
        F.normalize(torch.ones(24, 32) + noise * torch.randn(24, 32, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    ]
    output = cyclip_loss(
        *embeds, 14.3, inmodal_cyclic_weight=100, crossmodal_cyclic_weight=100, cyclic_max_gradient_share=0.3
    )
    grads = gradients(output.loss, embeds)
    assert 0 <= output.cyclic_gradient_factor <= 1
    assert all(grad.isfinite().all() for grad in grads)
    if noise:
        (clip,) = lengths(
            [cyclip_loss(*embeds, 14.3, inmodal_cyclic_weight=0, crossmodal_cyclic_weight=0).loss], embeds
        )
        (bounded,) = lengths([output.loss], embeds)
        assert 0.7 - 1e-3 <= bounded / clip <= 1.3 + 1e-3


def test_a_frozen_tower_gets_no_gradient():
    image_embeds, text_embeds = random_embeds(24, 32)
    output = cyclip_loss(image_embeds.detach(), text_embeds, 14.3, cyclic_max_gradient_share=0.1)
    output.loss.backward()
    assert text_embeds.grad.abs().sum() > 0


def test_without_cyclic_weights_there_is_nothing_to_bound():
    inputs = random_embeds(24, 32)
    off = {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0}
    output = cyclip_loss(*inputs, 14.3, **off, cyclic_max_gradient_share=0.1)
    assert output.cyclic_gradient_factor is None
    assert output.loss.item() == cyclip_loss(*inputs, 14.3, **off).loss.item()
