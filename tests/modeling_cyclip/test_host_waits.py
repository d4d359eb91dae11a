"""A step on a GPU never waits for it: tensors on a device without values refuse to be read."""

import pytest
import torch

from modeling_cyclip.data.data_collator import normalize
from modeling_cyclip.divergence import FirstBadStep
from modeling_cyclip.gradient_cache import cached_step
from modeling_cyclip.modeling_cyclip import CyCLIPModel
from modeling_cyclip.optimizer import ClampLogitScale
from modeling_cyclip.training_log import WeightedMean


BATCH = 12


@pytest.fixture
def device(monkeypatch):
    # It knows real devices alone.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    return torch.device("meta")


def inputs_on(device, image_size):
    return {
        "input_ids": torch.zeros(BATCH, 6, dtype=torch.long, device=device),
        "pixel_values": torch.zeros(BATCH, 3, image_size, image_size, dtype=torch.uint8, device=device),
    }


@pytest.mark.parametrize(
    "weights, share", [((0.25, 0.25), None), ((0.25, 0.1), None), ((0.25, 0.25), 0.3), ((0.0, 0.0), None)]
)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_step_reads_nothing_from_the_device(device, model, processor, weights, share, chunk_size, monkeypatch):
    model = CyCLIPModel(model.config).to(device).train()
    model.config.inmodal_cyclic_weight, model.config.crossmodal_cyclic_weight = weights
    model.config.cyclic_max_gradient_share = share
    inputs = inputs_on(device, model.config.vision_config.image_size)
    inputs["pixel_values"] = normalize(processor.image_processor, inputs["pixel_values"])
    if chunk_size is None:
        outputs = model(**inputs, return_loss=True, return_all_parts=False)
        parts = {"contrastive_loss": outputs.contrastive_loss, "loss": outputs.loss}
        outputs.loss.backward()
    else:
        # A random state is kept on the host.
        monkeypatch.setattr("modeling_cyclip.gradient_cache._random_state", lambda device: [])
        monkeypatch.setattr("modeling_cyclip.gradient_cache._set_random_state", lambda states, device: None)
        loss, *_ = cached_step(model, inputs, chunk_size, model.compute_loss, torch.Tensor.backward, torch.enable_grad)
        parts = loss._asdict()
    FirstBadStep().add(parts["loss"], 1)
    WeightedMean().add(parts, weight=1)
    ClampLogitScale().on_optimizer_step(None, None, None, model=model)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_attention_mask_would_be_read(device, model):
    model = CyCLIPModel(model.config).to(device)
    inputs = inputs_on(device, model.config.vision_config.image_size)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model.get_text_features(inputs["input_ids"], attention_mask=torch.ones_like(inputs["input_ids"]))
