"""The sigmoid loss against its formula over all pairs, in one block and in several, in one process and in several."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import SiglipConfig, SiglipModel

from modeling_cyclip import sigmoid, sigmoid_loss
from tests.distributed import run_distributed


N = 24


def inputs_of(n, dim, scale=10.0, bias=-10.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    embeds = [F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (scale, bias)]
    return [tensor.to(dtype).requires_grad_() for tensor in (*embeds, *numbers)]


def formula(image_embeds, text_embeds, logit_scale, logit_bias):
    """−(1/N) Σ_ij log σ(z_ij · logit_ij), with log σ(x) = min(x, 0) − log(1 + exp(−|x|))."""
    n = len(image_embeds)
    signs = 2 * torch.eye(n, dtype=torch.float64) - 1
    signed = signs * (logit_scale * image_embeds @ text_embeds.T + logit_bias)
    return -(signed.clamp(max=0) - torch.log1p(torch.exp(-signed.abs()))).sum() / n


def value_and_gradients(function, inputs, **options):
    loss = function(*inputs, **options)
    return loss.detach(), torch.autograd.grad(loss, [tensor for tensor in inputs if tensor.requires_grad])


def assert_gradients_equal(actual, expected, tolerance):
    for grad, reference in zip(actual, expected, strict=True):
        assert (grad - reference).norm() <= tolerance * reference.norm()


@pytest.fixture(params=["one block", "blocks"])
def blocks(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(sigmoid, "BLOCK_BYTES", 8 * 60 * 7)  # seven rows of 60 logits in float64


# At the start of SigLIP's training, near its end, with logits of both signs, and with neither scale nor bias of use.
@pytest.mark.parametrize("scale, bias", [(10.0, -10.0), (117.3, -12.9), (30.0, 2.0), (1.0, 0.0)])
@pytest.mark.parametrize("n, dim", [(1, 8), (60, 128), (60, 60), (61, 60), (250, 12)])
def test_equals_the_formula_in_float64(blocks, n, dim, scale, bias):
    inputs = inputs_of(n, dim, scale, bias)
    expected, references = value_and_gradients(formula, inputs)
    loss, grads = value_and_gradients(sigmoid_loss, inputs)
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_gradients_equal(grads, references, 1e-10)
    with torch.no_grad():
        assert torch.equal(sigmoid_loss(*inputs), loss)


def test_gradients_pass_gradcheck():
    assert torch.autograd.gradcheck(sigmoid_loss, inputs_of(7, 5, 5.0, -2.0))


def test_is_the_loss_of_transformers_siglip():
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = SiglipConfig(
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        text_config={**tower, "vocab_size": 64, "max_position_embeddings": 8, "projection_size": 16},
    )
    model = SiglipModel(config).eval()
    model.logit_scale.data.fill_(math.log(10))
    model.logit_bias.data.fill_(-3)
    assert model.logit_bias.shape == (1,)
    outputs = model(input_ids=torch.randint(3, 60, (12, 8)), pixel_values=torch.randn(12, 3, 16, 16), return_loss=True)
    numbers = [model.logit_scale, model.logit_bias]
    expected = torch.autograd.grad(outputs.loss, numbers, retain_graph=True)
    loss = sigmoid_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp(), model.logit_bias)
    assert loss.item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    for grad, reference in zip(torch.autograd.grad(loss, numbers), expected, strict=True):
        assert grad.shape == (1,) and grad.item() == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (3,), (0, 2), (1, 3), (2, 3), (0, 1), (0, 1, 3), (0, 1, 2)])
def test_gradients_stop_at_what_is_frozen(blocks, frozen):
    inputs = inputs_of(60, 12)
    _, expected = value_and_gradients(sigmoid_loss, inputs)
    for i in frozen:
        inputs[i] = inputs[i].detach()
    _, grads = value_and_gradients(sigmoid_loss, inputs)
    assert_gradients_equal(grads, [grad for i, grad in enumerate(expected) if i not in frozen], 1e-13)


def test_scale_and_bias_may_be_plain_numbers_or_have_one_dimension():
    image_embeds, text_embeds, scale, bias = inputs_of(30, 8, 12.0, -4.0)
    expected = sigmoid_loss(image_embeds, text_embeds, scale, bias)
    assert torch.equal(sigmoid_loss(image_embeds, text_embeds, 12.0, -4), expected)
    bias = bias.detach().reshape(1).requires_grad_()
    loss = sigmoid_loss(image_embeds, text_embeds, scale, bias)
    assert torch.equal(loss, expected)
    assert torch.autograd.grad(loss, bias)[0].shape == (1,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_are_computed_in_float32_under_autocast(dtype):
    inputs = inputs_of(48, 32, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grads = value_and_gradients(sigmoid_loss, inputs)
    assert loss.dtype == torch.float32 and all(grad.dtype == dtype for grad in grads)
    in_float32 = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected, references = value_and_gradients(sigmoid_loss, in_float32)
    assert torch.equal(loss, expected)
    for grad, reference in zip(grads, references, strict=True):
        assert torch.equal(grad, reference.to(dtype))


# Pairs that are told apart, and pairs that could not be more wrong: float32 keeps its digits in both.
@pytest.mark.parametrize("scale, bias", [(15.0, -10.0), (100.0, -10.0), (200.0, -20.0), (200.0, -100.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_saturated_logits_keep_their_digits_in_float32(scale, bias, sign):
    images, _, *numbers = inputs_of(60, 8, scale, bias, torch.float32)
    inputs = [images, (sign * images.detach()).requires_grad_(), *numbers]
    expected, references = value_and_gradients(formula, [x.detach().double().requires_grad_() for x in inputs])
    loss, grads = value_and_gradients(sigmoid_loss, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients_equal(grads, references, 1e-4)


def test_a_solved_batch_keeps_its_small_loss():
    embeds = torch.eye(32, requires_grad=True)
    loss = sigmoid_loss(embeds, embeds.detach(), 60.0, -30.0)
    assert loss.item() == pytest.approx(32 * math.log1p(math.exp(-30)), rel=1e-5)


def test_a_loss_that_is_not_finite_stays_so():
    image_embeds, text_embeds, scale, bias = inputs_of(12, 4)
    image_embeds.data[3, 2] = float("nan")
    assert sigmoid_loss(image_embeds, text_embeds, scale, bias).isnan()


def test_logits_are_never_all_in_memory(monkeypatch):
    monkeypatch.setattr(sigmoid, "BLOCK_BYTES", 4 * 64 * 8)
    sizes = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *inputs, out: sizes.append(len(out)) or addmm(*inputs, out=out))
    sigmoid_loss(*inputs_of(64, 8, dtype=torch.float32))
    assert sizes == [8] * 8


def test_a_step_reads_nothing_from_the_device(monkeypatch):
    # Tensors on a device without values refuse to be read. Autocast knows real devices alone.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    inputs = [tensor.detach().to("meta").requires_grad_() for tensor in inputs_of(12, 4, dtype=torch.float32)]
    _, grads = value_and_gradients(sigmoid_loss, inputs)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]


def test_second_derivatives_are_refused_with_the_reason():
    inputs = inputs_of(8, 4)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(sigmoid_loss(*inputs), inputs, create_graph=True)


@pytest.mark.parametrize(
    "image_shape, text_shape, message",
    [((4, 8), (5, 8), r"one shape.*\(4, 8\) and \(5, 8\)"), ((8,), (8,), "two matrices"), ((0, 8), (0, 8), "at least one")],
)  # fmt: skip
def test_wrong_shapes_are_refused(image_shape, text_shape, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(torch.ones(image_shape), torch.ones(text_shape), 10.0, -10.0)


@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_several_scales_or_biases_are_refused_by_name(name):
    numbers = {"logit_scale": 10.0, "logit_bias": -10.0, name: torch.ones(2)}
    with pytest.raises(ValueError, match=f"`{name}` must be one number, got a tensor of shape"):
        sigmoid_loss(torch.ones(4, 8), torch.ones(4, 8), **numbers)


def rows_of_one(rank, world_size):
    """The loss and the gradients that data-parallel wrappers would apply, all of them and with the images frozen."""
    sigmoid.BLOCK_BYTES = 8 * N * 3  # three rows of logits
    image_embeds, text_embeds, *numbers = inputs_of(N, 10, 12.0, -3.0)
    rows = slice(rank * N // world_size, (rank + 1) * N // world_size)
    results = []
    for images_need_grad in (True, False):
        embeds = [image_embeds[rows].detach(), text_embeds[rows].detach()]
        inputs = [embeds[0].requires_grad_(images_need_grad), embeds[1].requires_grad_(), *numbers]
        loss, grads = value_and_gradients(sigmoid_loss, inputs, process_group=dist.group.WORLD)
        grads = [grad / world_size for grad in grads]
        for grad in grads[-2:]:
            dist.all_reduce(grad)
        # Numbers, as a tensor that a process sends ends with the process.
        results.append([loss.item(), *(grad.tolist() for grad in grads)])
    return results


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_processes_have_the_loss_and_the_gradients_of_one_with_all_pairs(world_size, tmp_path):
    expected, references = value_and_gradients(formula, inputs_of(N, 10, 12.0, -3.0))
    by_process = run_distributed(rows_of_one, world_size, tmp_path)
    for case, num_embeds in enumerate((2, 1)):
        losses, *grads = zip(*(results[case] for results in by_process), strict=True)
        assert losses == pytest.approx([expected.item()] * world_size, rel=1e-12)
        for parts, reference in zip(grads[:num_embeds], references[2 - num_embeds : 2], strict=True):
            rows = torch.tensor([row for part in parts for row in part], dtype=torch.float64)
            assert_gradients_equal([rows], [reference], 1e-10)
        for values, reference in zip(grads[num_embeds:], references[2:], strict=True):
            assert values == pytest.approx([reference.item()] * world_size, rel=1e-10)
