"""The loss against the official implementation's figures and against the paper's formulas written out."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from modeling_cyclip import cyclic_regularisers, cyclip_loss


def dense_parts(image_embeds, text_embeds, logit_scale):
    """Sums over all pairs, as in the paper's section 3."""
    n = len(image_embeds)
    cross = image_embeds @ text_embeds.T
    labels = torch.arange(n)
    contrastive = (F.cross_entropy(logit_scale * cross, labels) + F.cross_entropy(logit_scale * cross.T, labels)) / 2
    inmodal = (image_embeds @ image_embeds.T - text_embeds @ text_embeds.T).square().sum() / n
    crossmodal = (cross - cross.T).square().sum() / n
    return contrastive, inmodal, crossmodal


def random_embeds(n, dim, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=-1).requires_grad_() for _ in range(2)
    ]


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


# Below, at and above one block of rows, and on both sides of N = d.
@pytest.mark.parametrize("n, dim", [(1, 8), (2, 3), (40, 64), (64, 64), (65, 64), (256, 32), (600, 48), (300, 400)])
@pytest.mark.parametrize("weights", [(0.25, 0.25), (0.25, 0.0), (0.0, 0.25), (0.7, 0.1), (0.0, 0.0)])
def test_equals_the_papers_formulas_in_float64(n, dim, weights):
    inputs = [*random_embeds(n, dim), torch.tensor(14.3, dtype=torch.float64, requires_grad=True)]
    parts = dense_parts(*inputs)
    expected = parts[0] + weights[0] * parts[1] + weights[1] * parts[2]

    output = cyclip_loss(*inputs, inmodal_cyclic_weight=weights[0], crossmodal_cyclic_weight=weights[1])

    assert output.inmodal_contrastive_loss is None
    for actual, reference in zip(output[:4], (expected, *parts), strict=True):
        assert actual.item() == pytest.approx(reference.item(), rel=1e-12, abs=1e-13)
    for actual, reference in zip(gradients(output.loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", ["paper", "cross_only", "in_only", "clip", "hot", "aligned"])
def test_equals_the_official_implementation(shared_data, case):
    tensors = load_file(shared_data / "golden" / "official_loss.safetensors")
    figures = json.loads((shared_data / "golden" / "official_loss.json").read_text())[case]
    image_embeds = tensors[f"{case}.image_embeds"].requires_grad_()
    text_embeds = tensors[f"{case}.text_embeds"].requires_grad_()
    logit_scale = torch.tensor(figures["logit_scale"], requires_grad=True)
    weights = figures["lambda_inmodal"], figures["lambda_crossmodal"]

    output = cyclip_loss(
        image_embeds,
        text_embeds,
        logit_scale.exp(),
        inmodal_cyclic_weight=weights[0],
        crossmodal_cyclic_weight=weights[1],
    )

    cyclic_loss = weights[0] * output.inmodal_cyclic_loss + weights[1] * output.crossmodal_cyclic_loss
    assert output.loss.item() == pytest.approx(figures["loss"], rel=1e-5)
    assert output.contrastive_loss.item() == pytest.approx(figures["contrastive_loss"], rel=1e-5, abs=1e-7)
    assert cyclic_loss.item() == pytest.approx(figures["cyclic_loss"], rel=1e-5, abs=1e-7)
    grads = gradients(output.loss, (image_embeds, text_embeds, logit_scale))
    for grad, name in zip(grads, ("image_embeds", "text_embeds", "logit_scale"), strict=True):
        expected = tensors[f"{case}.grad_{name}"]
        # Where the pairs are told apart perfectly, the gradient of the scale is rounding (1e-8) in both.
        assert (grad - expected).norm() <= 1e-5 * expected.norm() + 1e-7


@pytest.mark.parametrize("n, dim", [(1, 8), (40, 64), (256, 32), (600, 48)])
def test_augmented_views_halve_the_contrastive_term_with_one_of_their_own(n, dim):
    embeds = [*random_embeds(n, dim), *random_embeds(n, dim, seed=1)]
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    contrastive, inmodal, crossmodal = dense_parts(*embeds[:2], scale)
    # From the view as it is to the augmented one, and not back.
    views = [F.cross_entropy(scale * embeds[i] @ embeds[i + 2].T, torch.arange(n)) for i in (0, 1)]
    expected = (contrastive + sum(views) / 2) / 2 + 0.3 * inmodal + 0.1 * crossmodal

    output = cyclip_loss(
        *embeds[:2],
        scale,
        inmodal_cyclic_weight=0.3,
        crossmodal_cyclic_weight=0.1,
        augmented_image_embeds=embeds[2],
        augmented_text_embeds=embeds[3],
    )

    references = expected, contrastive, inmodal, crossmodal, sum(views) / 2
    for actual, reference in zip(output[:5], references, strict=True):
        assert actual.item() == pytest.approx(reference.item(), rel=1e-12, abs=1e-13)
    inputs = [*embeds, scale]
    for actual, reference in zip(gradients(output.loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-13)


def test_gradients_pass_gradcheck():
    inputs = [*random_embeds(7, 5), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(
        lambda i, t, s: cyclip_loss(i, t, s, inmodal_cyclic_weight=0.4, crossmodal_cyclic_weight=0.1).loss, inputs
    )


def test_gradients_stop_at_what_is_frozen():
    image_embeds, text_embeds = random_embeds(20, 8)
    (grad,) = gradients(cyclip_loss(image_embeds, text_embeds.detach(), 14.3).loss, (image_embeds,))
    expected, _ = gradients(cyclip_loss(image_embeds, text_embeds, 14.3).loss, (image_embeds, text_embeds))
    assert torch.equal(grad, expected)


def test_regularisers_are_the_losses_own_terms_with_gradients():
    inputs = random_embeds(30, 12)
    for actual, reference in zip(cyclic_regularisers(*inputs), dense_parts(*inputs, 1.0)[1:], strict=True):
        assert actual.item() == pytest.approx(reference.item(), rel=1e-12)
        for grad, expected in zip(gradients(actual, inputs), gradients(reference, inputs), strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n", [24, 96])
def test_reference_batch_size_keeps_the_weights_meaning(n):
    image_embeds, text_embeds = random_embeds(n, 32)
    plain = cyclip_loss(image_embeds, text_embeds, 14.3)
    scaled = cyclip_loss(image_embeds, text_embeds, 14.3, cyclic_reference_batch_size=48)
    cyclic = 0.25 * (plain.inmodal_cyclic_loss + plain.crossmodal_cyclic_loss)
    assert scaled.loss.item() == pytest.approx((plain.contrastive_loss + cyclic * 48 / n).item(), rel=1e-12)
    assert scaled.inmodal_cyclic_loss == plain.inmodal_cyclic_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_are_computed_in_float32(dtype):
    image_embeds, text_embeds = (x.detach().to(dtype).requires_grad_() for x in random_embeds(48, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = cyclip_loss(image_embeds, text_embeds, 14.3)
        grad_in_autocast = gradients(output.loss, (image_embeds,))[0]
    reference = cyclip_loss(image_embeds.float(), text_embeds.float(), 14.3)
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.loss, reference.loss)
    assert torch.equal(grad_in_autocast, gradients(reference.loss, (image_embeds,))[0])


def test_nearly_solved_batch_keeps_its_small_loss():
    # The log-sum-exp of such a batch differs from the logit of the pair by less than the logit's rounding.
    embeds = torch.eye(64)
    loss = cyclip_loss(embeds, embeds, 15.0).contrastive_loss
    expected = torch.log1p(63 * torch.exp(torch.tensor(-15.0, dtype=torch.float64)))
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)


def test_extreme_logits_do_not_overflow():
    embeds = F.normalize(torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    output = cyclip_loss(embeds, -embeds, 100.0)
    assert output.contrastive_loss > 100
    assert gradients(output.loss, (embeds,))[0].isfinite().all()


def test_second_derivatives_are_refused_with_the_reason():
    image_embeds, text_embeds = random_embeds(8, 4)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(cyclip_loss(image_embeds, text_embeds, 5.0).loss, image_embeds, create_graph=True)


@pytest.mark.parametrize(
    "image_shape, text_shape, message",
    [
        ((4, 8), (5, 8), r"one shape.*\(4, 8\) and \(5, 8\)"),
        ((4, 8), (4, 6), "one shape"),
        ((4, 2, 8), (4, 2, 8), "two matrices"),
        ((8,), (8,), "two matrices"),
        ((0, 8), (0, 8), "at least one"),
    ],
)
def test_wrong_shapes_are_refused(image_shape, text_shape, message):
    with pytest.raises(ValueError, match=message):
        cyclip_loss(torch.ones(image_shape), torch.ones(text_shape), 1.0)
    with pytest.raises(ValueError, match=message):
        cyclic_regularisers(torch.ones(image_shape), torch.ones(text_shape))


@pytest.mark.parametrize(
    "option, value",
    [
        ("inmodal_cyclic_weight", -0.1),
        ("crossmodal_cyclic_weight", float("nan")),
        ("crossmodal_cyclic_weight", float("inf")),
        ("cyclic_reference_batch_size", 0),
        ("cyclic_max_gradient_share", 0.0),
        ("cyclic_max_gradient_share", float("nan")),
    ],
)
def test_wrong_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        cyclip_loss(torch.ones(4, 8), torch.ones(4, 8), 1.0, **{option: value})


def test_an_augmented_view_of_images_or_captions_alone_is_refused():
    with pytest.raises(ValueError, match="go together"):
        cyclip_loss(torch.ones(4, 8), torch.ones(4, 8), 1.0, augmented_image_embeds=torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"one shape.*\(4, 8\) and \(4, 8\) and \(4, 8\) and \(3, 8\)"):
        views = {"augmented_image_embeds": torch.ones(4, 8), "augmented_text_embeds": torch.ones(3, 8)}
        cyclip_loss(torch.ones(4, 8), torch.ones(4, 8), 1.0, **views)


def test_integer_embeddings_and_several_scales_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        cyclip_loss(torch.ones(4, 8, dtype=torch.long), torch.ones(4, 8, dtype=torch.long), 1.0)
    with pytest.raises(ValueError, match="logit_scale"):
        cyclip_loss(torch.ones(4, 8), torch.ones(4, 8), torch.ones(2))


@pytest.mark.parametrize("share", [None, 0.05])
@pytest.mark.parametrize("n, dim", [(2, 3), (40, 64), (300, 48)])
def test_with_a_bias_the_contrastive_term_is_the_sigmoid_loss(n, dim, share):
    numbers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (9.0, -7.5)]
    inputs = [*random_embeds(n, dim), *numbers]
    image_embeds, text_embeds, scale, bias = inputs
    logits = scale * image_embeds @ text_embeds.T + bias
    contrastive = -F.logsigmoid(logits * (2 * torch.eye(n, dtype=torch.float64) - 1)).sum() / n
    _, inmodal, crossmodal = dense_parts(*inputs[:3])

    output = cyclip_loss(
        *inputs, inmodal_cyclic_weight=0.7, crossmodal_cyclic_weight=0.1, cyclic_max_gradient_share=share
    )

    factor = 1 if share is None else output.cyclic_gradient_factor.item()
    assert 0 < factor <= 1 and (share is None or factor < 1)
    expected = contrastive + factor * (0.7 * inmodal + 0.1 * crossmodal)
    for actual, reference in zip(output[:4], (expected, contrastive, inmodal, crossmodal), strict=True):
        assert actual.item() == pytest.approx(reference.item(), rel=1e-12, abs=1e-13)
    for actual, reference in zip(gradients(output.loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-13)


def test_augmented_views_do_not_go_with_a_bias():
    embeds = [tensor.detach() for tensor in random_embeds(4, 8)]
    with pytest.raises(ValueError, match="does not go with a `logit_bias`"):
        cyclip_loss(*embeds, 10.0, -10.0, augmented_image_embeds=embeds[0], augmented_text_embeds=embeds[1])
