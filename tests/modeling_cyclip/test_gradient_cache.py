"""Cached gradients against those of the whole batch at once."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from modeling_cyclip import CyCLIPModel
from modeling_cyclip.gradient_cache import _random_state, _set_random_state, cached_step


def batch_of(processor, num_pairs, dtype):
    captions = [f"red picture {index}" for index in range(num_pairs)]
    pixel_values = torch.randn(num_pairs, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {**processor.tokenizer(captions, padding=True, return_tensors="pt"), "pixel_values": pixel_values}


def cached(model, inputs, chunk_size):
    return cached_step(
        model,
        inputs,
        chunk_size,
        compute_loss=partial(model.compute_loss, cyclic_weight_factor=0.5),
        backward=torch.Tensor.backward,
        no_sync=nullcontext,
    )


@pytest.mark.parametrize("chunk_size", [1, 5, 8, 20, 64])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_whole_batch(model, processor, chunk_size, dtype, tolerance, checkpointing):
    model = model.to(dtype).train()
    inputs = batch_of(processor, 20, dtype)
    expected = model(**inputs, return_loss=True, cyclic_weight_factor=0.5)
    expected.loss.backward()
    reference = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()

    parts, image_embeds, _ = cached(model, inputs, chunk_size)

    assert parts.loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    torch.testing.assert_close(image_embeds, expected.image_embeds, rtol=1e-4, atol=1e-6)
    scale = max(gradient.norm() for gradient in reference.values())
    for name, parameter in model.named_parameters():
        # Some gradients (biases of the keys) are zero but for rounding, so the largest sets the scale.
        assert (parameter.grad - reference[name]).norm() <= tolerance * (reference[name].norm() + 1e-2 * scale), name


def test_gradients_with_augmented_views_equal_those_of_the_whole_batch(model, processor):
    model = model.double().train()
    inputs = batch_of(processor, 20, torch.float64)
    inputs.update({f"augmented_{name}": tensor.roll(3, dims=0) for name, tensor in inputs.items()})
    expected = model(**inputs, return_loss=True, cyclic_weight_factor=0.5)
    expected.loss.backward()
    reference = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    parts, _, _ = cached(model, inputs, chunk_size=6)

    assert parts.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    assert parts.inmodal_contrastive_loss.item() == pytest.approx(expected.inmodal_contrastive_loss.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-9, atol=1e-12)


def test_dropout_draws_the_same_masks_in_both_passes(config, processor):
    config.vision_config.attention_dropout = config.text_config.attention_dropout = 0.5
    torch.manual_seed(0)
    model = CyCLIPModel(config).double().train()
    inputs = batch_of(processor, 12, torch.float64)
    embeds = []
    model.visual_projection.register_forward_hook(lambda module, args, output: embeds.append(output.detach().clone()))
    torch.manual_seed(1)
    cached(model, inputs, chunk_size=4)
    assert len(embeds) == 6
    for first, second in zip(embeds[:3], embeds[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(embeds[0], embeds[1])


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_devices_of_every_kind_draw_the_same_again(kind, monkeypatch):
    # Stands in for the generator of the third such device.
    device, generator = torch.device(kind, 2), torch.Generator()
    states = {device: generator}
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: states[device].get_state())
    monkeypatch.setattr(module, "set_rng_state", lambda state, device: states[device].set_state(state))
    state = _random_state(device)
    drawn = torch.rand(3), torch.rand(3, generator=generator)
    _set_random_state(state, device)
    assert torch.equal(torch.rand(3), drawn[0]) and torch.equal(torch.rand(3, generator=generator), drawn[1])


def test_frozen_towers_stay_without_gradients(model, processor):
    model.vision_model.requires_grad_(False)
    model.visual_projection.requires_grad_(False)
    cached(model.train(), batch_of(processor, 8, torch.float32), chunk_size=4)
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())
    assert all(parameter.grad is not None for parameter in model.text_model.parameters())
