"""CyCLIPModel: CLIP's outputs, CyCLIP's loss, and checkpoints that are CLIP checkpoints."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from modeling_cyclip import CyCLIPConfig, CyCLIPModel, cyclip_loss


@pytest.fixture
def inputs(processor, pairs):
    captions = [captions[0] for captions in pairs["caption"][:6]]
    text_inputs = processor.tokenizer(captions, padding=True, return_tensors="pt")
    pixel_values = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {**text_inputs, "pixel_values": pixel_values}


def test_evaluation_gives_clips_outputs(model, inputs):
    model.eval()
    clip = CLIPModel(CLIPConfig(**model.config.to_dict())).eval()
    clip.load_state_dict(model.state_dict())
    ours, theirs = model(**inputs), clip(**inputs)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        torch.testing.assert_close(ours[name], theirs[name])
    assert ours.loss is None


def test_loss_is_cyclips_with_the_weights_of_the_configuration(model, inputs):
    model.config.inmodal_cyclic_weight, model.config.crossmodal_cyclic_weight = 0.5, 0.125
    model.config.cyclic_reference_batch_size = 12
    output = model(**inputs, return_loss=True)
    expected = cyclip_loss(
        output.image_embeds,
        output.text_embeds,
        model.logit_scale.exp(),
        inmodal_cyclic_weight=0.5,
        crossmodal_cyclic_weight=0.125,
        cyclic_reference_batch_size=12,
    )
    for name in ("loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss"):
        assert torch.equal(output[name], getattr(expected, name))


@pytest.mark.parametrize("position_rows", [1, 6])
def test_positions_are_those_of_the_augmented_captions_too(model, inputs, position_rows):
    views = {f"augmented_{name}": tensor.flip(0) for name, tensor in inputs.items()}
    positions = torch.arange(inputs["input_ids"].shape[1]).flip(0).expand(position_rows, -1)
    output = model(**inputs, **views, position_ids=positions)
    plain = model(**inputs, position_ids=positions)
    torch.testing.assert_close(output.augmented_text_embeds, plain.text_embeds.flip(0))


@pytest.mark.parametrize("missing", ["input_ids", "attention_mask", "pixel_values"])
def test_an_incomplete_augmented_view_is_refused(model, inputs, missing):
    views = {f"augmented_{name}": tensor for name, tensor in inputs.items() if name != missing}
    with pytest.raises(ValueError, match="None"):
        model(**inputs, **views)
    with pytest.raises(ValueError, match=f"augmented_{missing}"):
        model(**inputs, **views, **{f"augmented_{missing}": inputs[missing][:4]})


@pytest.mark.parametrize("training", [True, False])
def test_augmented_views_are_embedded_like_the_others_and_enter_the_loss(model, inputs, training):
    model.train(training)
    views = {name: tensor.flip(0) for name, tensor in inputs.items()}
    output = model(**inputs, **{f"augmented_{name}": tensor for name, tensor in views.items()}, return_loss=True)
    plain, flipped = model(**inputs), model(**views)
    expected = cyclip_loss(
        plain.image_embeds,
        plain.text_embeds,
        model.logit_scale.exp(),
        augmented_image_embeds=flipped.image_embeds,
        augmented_text_embeds=flipped.text_embeds,
    )
    assert "cyclic_gradient_factor" not in output
    for name, value in expected._asdict().items():
        torch.testing.assert_close(output.get(name), value)
    torch.testing.assert_close(output.image_embeds, plain.image_embeds)
    if not training:
        torch.testing.assert_close(output.logits_per_image, plain.logits_per_image)


def test_both_weights_zero_is_clip(model, inputs):
    model.config.inmodal_cyclic_weight = model.config.crossmodal_cyclic_weight = 0.0
    clip = CLIPModel(CLIPConfig(**model.config.to_dict()))
    clip.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(**inputs, return_loss=True).loss, clip(**inputs, return_loss=True).loss)


def test_training_builds_no_logits_and_trains_every_parameter(model, inputs):
    model.train()
    output = model(**inputs, return_loss=True)
    assert output.logits_per_image is None and output.logits_per_text is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weight_factor_scales_both_terms(model, inputs):
    half = model(**inputs, return_loss=True, cyclic_weight_factor=0.5)
    cyclic = half.inmodal_cyclic_loss + half.crossmodal_cyclic_loss
    torch.testing.assert_close(half.loss, half.contrastive_loss + 0.5 * 0.25 * cyclic)


def test_the_configuration_bounds_the_cyclic_gradient(model, inputs, tmp_path):
    model.config.cyclic_max_gradient_share = 0.01
    model.save_pretrained(tmp_path)
    outputs = CyCLIPModel.from_pretrained(tmp_path).train()(**inputs, return_loss=True)
    cyclic = outputs.inmodal_cyclic_loss + outputs.crossmodal_cyclic_loss
    assert 0 < outputs.cyclic_gradient_factor < 1
    expected = outputs.contrastive_loss + 0.25 * outputs.cyclic_gradient_factor * cyclic
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_bound_rises_with_the_weights(model, inputs):
    model.config.cyclic_max_gradient_share = 0.02
    bounded, warm = (model.train()(**inputs, return_loss=True, cyclic_weight_factor=factor) for factor in (1.0, 0.5))
    # Half the share of weights half as large.
    assert warm.cyclic_gradient_factor.item() == pytest.approx(bounded.cyclic_gradient_factor.item(), rel=1e-5)
    assert model(**inputs, return_loss=True, cyclic_weight_factor=0.0).loss == bounded.contrastive_loss


def test_tuple_output_starts_with_the_loss(model, inputs):
    model.eval()
    output = model(**inputs, return_loss=True)
    as_tuple = model(**inputs, return_loss=True, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits_per_image)


def test_compiled_towers_give_the_same_loss(model, inputs):
    expected = model(**inputs, return_loss=True).loss
    expected.backward()
    gradient = model.visual_projection.weight.grad.clone()
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(**inputs, return_loss=True).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.visual_projection.weight.grad, gradient)


def test_saved_checkpoint_is_a_clip_checkpoint(model, inputs, tmp_path):
    model.config.inmodal_cyclic_weight = 0.5
    model.eval().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "clip" and saved["architectures"] == ["CLIPModel"]
    expected = model(**inputs).logits_per_image
    for model_class in (AutoModel, CLIPModel, CyCLIPModel):
        reopened = model_class.from_pretrained(tmp_path)
        assert torch.equal(reopened(**inputs).logits_per_image, expected)
    assert isinstance(reopened.config, CyCLIPConfig) and reopened.config.inmodal_cyclic_weight == 0.5


def test_clip_checkpoint_opens_with_the_papers_weights(model, tmp_path):
    CLIPModel(CLIPConfig(**model.config.to_dict())).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("inmodal_cyclic_weight", "crossmodal_cyclic_weight", "cyclic_reference_batch_size"):
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    reopened = CyCLIPModel.from_pretrained(tmp_path, crossmodal_cyclic_weight=0)
    assert reopened.config.inmodal_cyclic_weight == 0.25 and reopened.config.crossmodal_cyclic_weight == 0


def test_configuration_of_clip_is_taken_with_the_papers_weights(model, inputs, tmp_path):
    clip = CLIPModel(CLIPConfig(**model.config.to_dict()))
    clip.load_state_dict(model.state_dict())
    clip.to(torch.float64).save_pretrained(tmp_path / "clip")
    plain = AutoConfig.from_pretrained(tmp_path / "clip", attn_implementation="eager")
    assert type(plain) is CLIPConfig
    plain.text_config._attn_implementation = "sdpa"

    opened = CyCLIPModel.from_pretrained(tmp_path / "clip", config=plain)
    attention = [
        c._attn_implementation for c in (opened.config, opened.config.vision_config, opened.config.text_config)
    ]
    assert attention == ["eager", "eager", "sdpa"] and opened.dtype == opened.config.dtype == torch.float64
    assert opened.name_or_path == str(tmp_path / "clip")
    opened.save_pretrained(tmp_path / "cyclip")
    reopened = CyCLIPModel.from_pretrained(tmp_path / "cyclip", dtype="float32")
    config = json.loads((tmp_path / "cyclip" / "config.json").read_text())
    assert config["model_type"] == "clip" and config["architectures"] == ["CLIPModel"]
    expected = model(**inputs, return_loss=True).loss
    assert torch.equal(reopened.train()(**inputs, return_loss=True).loss, expected)


def test_other_shapes_are_drawn_only_if_asked_for(model, config, tmp_path):
    model.save_pretrained(tmp_path)
    config.projection_dim = 10
    with pytest.raises(ValueError, match=r"text_projection\.weight is \(12, 16\), not \(10, 16\), and 1 others"):
        CyCLIPModel.from_pretrained(tmp_path, config=config)
    opened, info = CyCLIPModel.from_pretrained(
        tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert opened.text_projection.weight.shape == (10, 16) and len(info["mismatched_keys"]) == 2
    assert torch.equal(opened.logit_scale, model.logit_scale)
    config.text_config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"text_model\.encoder\.layers\.2"):
        CyCLIPModel.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_read_through_and_not_saved_again(model, tmp_path, prefix):
    model.save_pretrained(tmp_path)
    save_file({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    opened = CyCLIPModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
    opened.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    """What `open` gives others of a new file."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
def test_saved_weights_have_the_permissions_of_other_files(model, tmp_path, umask, max_shard_size):
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        (path.name for path in tmp_path.iterdir()), 0o666 & ~umask
    )
    assert os.umask(umask) == umask


def test_a_state_dict_must_be_whole(model, config):
    weights = model.state_dict()
    opened = CyCLIPModel.from_pretrained(None, config=config, state_dict=weights)
    assert torch.equal(opened.text_projection.weight, model.text_projection.weight)
    del weights["logit_scale"]
    with pytest.raises(ValueError, match="The state dict lacks weights of a CLIP model"):
        CyCLIPModel.from_pretrained(None, config=config, state_dict=weights)


# Run where `modeling_cyclip` cannot be imported, as on a machine that has plain transformers only.
PLAIN_TRANSFORMERS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_cyclip", "training", "evaluation"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import json
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPProcessor, pipeline

folder = sys.argv[1]
image, labels = Image.new("RGB", (16, 16), (220, 30, 30)), ["red number 1", "blue number 2"]
inputs = CLIPProcessor.from_pretrained(folder)(text=labels, images=image, padding=True, return_tensors="pt")
logits = [cls.from_pretrained(folder)(**inputs).logits_per_image[0].tolist() for cls in (AutoModel, CLIPModel)]
scores = pipeline("zero-shot-image-classification", model=folder)(
    image, candidate_labels=labels, hypothesis_template="{}"
)
print(json.dumps({"logits": logits, "scores": {score["label"]: score["score"] for score in scores}}))
"""


def test_checkpoint_opens_where_this_package_is_not_installed(model, processor, tmp_path):
    from PIL import Image

    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels = ["red number 1", "blue number 2"]
    image = Image.new("RGB", (16, 16), (220, 30, 30))
    expected = model(**processor(text=labels, images=image, padding=True, return_tensors="pt")).logits_per_image[0]

    run = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    result = json.loads(run.stdout.strip().splitlines()[-1])
    for logits in result["logits"]:
        assert logits == pytest.approx(expected.tolist(), abs=1e-6)
    for label, probability in zip(labels, expected.softmax(dim=0).tolist(), strict=True):
        assert result["scores"][label] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize(
    "option, value",
    [("inmodal_cyclic_weight", -1.0), ("crossmodal_cyclic_weight", float("nan")), ("cyclic_reference_batch_size", 0),
     ("cyclic_max_gradient_share", 0.0)],
)  # fmt: skip
def test_configuration_refuses_values_without_meaning(option, value):
    with pytest.raises(Exception, match=option):
        CyCLIPConfig(**{option: value})


def test_configuration_refuses_a_weight_that_is_no_number():
    with pytest.raises(Exception, match="inmodal_cyclic_weight"):
        CyCLIPConfig(inmodal_cyclic_weight="0.25")
