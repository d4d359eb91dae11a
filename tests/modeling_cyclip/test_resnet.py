"""The paper's ResNet towers: CyCLIPResNetConfig, CyCLIPResNetModel, and how their checkpoints travel."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import multi_head_attention_forward
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    pipeline,
)

from modeling_cyclip import (
    CyCLIPConfig,
    CyCLIPModel,
    CyCLIPResNetConfig,
    CyCLIPResNetModel,
    CyCLIPResNetVisionConfig,
    cyclip_loss,
)
from modeling_cyclip.gradient_cache import cached_step


LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
TOKENS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def tiny_config(**kwargs) -> CyCLIPResNetConfig:
    text = {"vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "eos_token_id": len(TOKENS) - 1}
    vision = {"depths": [1, 2, 1, 1], "embedding_size": 4, "num_attention_heads": 2, "image_size": 64}
    return CyCLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=16, **kwargs)


def tiny_model(**kwargs) -> CyCLIPResNetModel:
    torch.manual_seed(0)
    model = CyCLIPResNetModel(tiny_config(**kwargs)).eval()
    with torch.no_grad():  # a trained network: blocks that do something, statistics that are not zero and one
        for name, tensor in model.state_dict().items():
            if "bn" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def tiny_inputs(batch_size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(len(LETTERS), (batch_size, 8), generator=generator)
    input_ids[:, -1] = len(TOKENS) - 1
    return {"input_ids": input_ids, "pixel_values": torch.randn(batch_size, 3, 64, 64, generator=generator)}


def tiny_processor() -> CLIPProcessor:
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    images = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32))


# Architecture


def test_parameter_counts_of_rn50():
    with torch.device("meta"):
        model = CyCLIPResNetModel(CyCLIPResNetConfig())
    vision = model.vision_model.num_parameters() + sum(p.numel() for p in model.visual_projection.parameters())
    assert vision == 38_316_896
    assert model.num_parameters() == 102_007_137


def test_shapes_and_recorded_outputs():
    model, inputs = tiny_model(), tiny_inputs()
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    vision = outputs.vision_model_output
    assert vision.last_hidden_state.shape == (4, 4, 128)
    assert [tuple(state.shape[1:]) for state in vision.hidden_states] == [
        (4, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (128, 2, 2),
    ]
    assert [tuple(weights.shape) for weights in vision.attentions] == [(4, 2, 1, 5)]
    assert torch.allclose(vision.attentions[0].sum(-1), torch.ones(4, 2, 1))
    assert outputs.image_embeds.shape == outputs.text_embeds.shape == (4, 16)


def test_attention_pooling_is_multi_head_attention_from_the_mean():
    model = tiny_model()
    pooling, projection = model.vision_model.attnpool, model.visual_projection
    features = torch.randn(3, 128, 2, 2)
    tokens = features.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pooling.positional_embedding[:, None]
    expected, _ = multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=128,
        num_heads=2,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pooling.q_proj.bias, pooling.k_proj.bias, pooling.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=projection.weight,
        out_proj_bias=projection.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pooling.q_proj.weight,
        k_proj_weight=pooling.k_proj.weight,
        v_proj_weight=pooling.v_proj.weight,
        need_weights=False,
    )
    torch.testing.assert_close(projection(pooling(features)[0]), expected[0], atol=1e-5, rtol=0)


def test_strides_are_average_poolings():
    for name, module in tiny_model().vision_model.named_modules():
        if isinstance(module, nn.Conv2d) and name != "conv1":
            assert module.stride == (1, 1), name


def test_images_of_another_size():
    model, images = tiny_model(), torch.randn(2, 3, 96, 64)
    with pytest.raises(ValueError, match=r"96\*64.*64\*64"):
        model.get_image_features(images)
    features = model.get_image_features(images, interpolate_pos_encoding=True)
    assert features.last_hidden_state.shape == (2, 6, 128)
    same = tiny_inputs()["pixel_values"]
    torch.testing.assert_close(
        model.get_image_features(same, interpolate_pos_encoding=True).pooler_output,
        model.get_image_features(same).pooler_output,
    )


@pytest.mark.parametrize(
    "values", [{"depths": [3, 4, 6]}, {"depths": [3, 0, 6, 3]}, {"num_attention_heads": 3}, {"image_size": 100}]
)
def test_config_refuses_what_cannot_be_built(values):
    with pytest.raises(Exception, match=next(iter(values)).replace("num_attention_heads", "attention heads")):
        CyCLIPResNetVisionConfig(**values)


# Initialisation (https://github.com/openai/CLIP, `CLIP.initialize_parameters`)


def test_initialised_as_the_official_code_does():
    torch.manual_seed(0)
    text = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    text |= {"intermediate_size": 1024, "eos_token_id": 499}
    vision = {"embedding_size": 8, "num_attention_heads": 4}
    model = CyCLIPResNetModel(CyCLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=256))
    state = model.state_dict()
    assert all(not state[name].any() for name in state if name.endswith("bn3.weight") and ".layer" in name)
    assert state["vision_model.bn3.weight"].eq(1).all()

    uniform = 3**-0.5  # standard deviation of the uniform distribution on [-1, 1]
    block, pooling = "text_model.encoder.layers.1.", "vision_model.attnpool."
    expected = {
        "vision_model.layer3.1.conv2.weight": uniform * (9 * 32) ** -0.5,
        "vision_model.layer2.0.downsample.0.weight": uniform * 32**-0.5,
        pooling + "positional_embedding": 256**-0.5,
        pooling + "q_proj.weight": 256**-0.5,
        pooling + "v_proj.weight": 256**-0.5,
        pooling + "k_proj.bias": uniform * 256**-0.5,
        "visual_projection.weight": 256**-0.5,
        "visual_projection.bias": uniform * 256**-0.5,
        "text_projection.weight": 256**-0.5,
        "text_model.embeddings.token_embedding.weight": 0.02,
        "text_model.embeddings.position_embedding.weight": 0.01,
        block + "self_attn.k_proj.weight": 256**-0.5,
        block + "self_attn.out_proj.weight": 256**-0.5 / 2,
        block + "mlp.fc1.weight": 512**-0.5,
        block + "mlp.fc2.weight": 256**-0.5 / 2,
        block + "mlp.fc2.bias": uniform * 1024**-0.5,
    }
    measured = {name: state[name].std().item() for name in expected}
    assert measured == pytest.approx(expected, rel=0.15)
    assert not state[block + "self_attn.q_proj.bias"].any()
    assert model.logit_scale.item() == pytest.approx(2.6592, abs=1e-4)


# Loss, gradients, numerics


def test_loss_is_that_of_cyclip_model():
    model, inputs = tiny_model(inmodal_cyclic_weight=0.5, crossmodal_cyclic_weight=0.1), tiny_inputs()
    outputs = model(**inputs, return_loss=True)
    expected = cyclip_loss(
        outputs.image_embeds,
        outputs.text_embeds,
        outputs.logit_scale,
        inmodal_cyclic_weight=0.5,
        crossmodal_cyclic_weight=0.1,
    )
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert outputs.logits_per_image.shape == (4, 4)
    trained = model.train()(**inputs, return_loss=True)
    assert trained.logits_per_image is None and trained.loss.requires_grad


def test_attention_implementations_agree():
    model, inputs = tiny_model(), tiny_inputs()
    embeds = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        embeds[implementation] = model(**inputs).image_embeds
    torch.testing.assert_close(embeds["eager"], embeds["sdpa"], atol=1e-6, rtol=0)


def test_gradient_checkpointing_keeps_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**tiny_inputs(), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moves_between_dtypes(dtype):
    inputs = tiny_inputs()
    expected = tiny_model()(**inputs).image_embeds
    embeds = tiny_model().to(dtype)(**inputs).image_embeds
    assert embeds.dtype == dtype
    torch.testing.assert_close(embeds.float(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_gradient_cache_normalises_chunk_by_chunk():
    model, inputs = tiny_model().double().train(), tiny_inputs(6)
    chunks = [model(**{name: tensor[rows] for name, tensor in inputs.items()}) for rows in (slice(4), slice(4, 6))]
    image_embeds, text_embeds = (
        torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("image_embeds", "text_embeds")
    )
    expected = model.compute_loss(image_embeds, text_embeds, model.logit_scale.exp()).loss
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    parts, _, _ = cached_step(model, inputs, 4, model.compute_loss, torch.Tensor.backward, nullcontext)
    torch.testing.assert_close(parts.loss, expected.detach())
    torch.testing.assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, gradients)


def test_synchronised_batch_norm_keeps_names_and_weights():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    torch.testing.assert_close(dict(converted.state_dict()), before, atol=0, rtol=0)


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "resnet"
    tiny_model(crossmodal_cyclic_weight=0.125).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "opener", [CyCLIPModel, CyCLIPResNetModel, AutoModel, AutoModelForZeroShotImageClassification]
)
def test_opens_with_the_same_weights(opener, checkpoint):
    model = opener.from_pretrained(checkpoint)
    assert type(model) is CyCLIPResNetModel and not model.training
    assert model.config.crossmodal_cyclic_weight == 0.125
    assert model.config.vision_config.depths == [1, 2, 1, 1]
    torch.testing.assert_close(dict(model.state_dict()), dict(tiny_model().state_dict()), atol=0, rtol=0)


def test_from_pretrained_opens_either_kind(checkpoint, tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = text | {"image_size": 32, "patch_size": 16}
    CLIPModel(CyCLIPConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    assert type(CyCLIPModel.from_pretrained(tmp_path)) is CyCLIPModel
    assert type(CyCLIPModel.from_pretrained(checkpoint, inmodal_cyclic_weight=1.0)) is CyCLIPResNetModel
    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is CyCLIPResNetConfig
    config.inmodal_cyclic_weight = 0.75
    model, info = CyCLIPModel.from_pretrained(checkpoint, config=config, output_loading_info=True)
    assert model.config.inmodal_cyclic_weight == 0.75
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(OSError, match="nowhere"):
        CyCLIPModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="of type clip, which CyCLIPResNetModel does not open"):
        CyCLIPResNetModel.from_pretrained(tmp_path)


def test_missing_weights_are_refused_however_it_is_opened(checkpoint, tmp_path):
    model, weights = tiny_model(), tiny_model().state_dict()
    del weights["vision_model.bn1.running_var"]
    model.save_pretrained(tmp_path, state_dict=weights)
    for opener in (CyCLIPModel, CyCLIPResNetModel, AutoModel):
        with pytest.raises(ValueError, match=r"lacks weights of a CLIP model.*bn1\.running_var and 0 others"):
            opener.from_pretrained(tmp_path)


def test_checkpoint_says_where_its_code_is(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "cyclip" and config["architectures"] == ["CyCLIPResNetModel"]
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"}
    for reference in config["auto_map"].values():
        assert (checkpoint / f"{reference.split('.')[0]}.py").is_file()


ELSEWHERE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_cyclip":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from PIL import Image
from transformers import AutoModel, pipeline

folder, again = sys.argv[1:]
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
    raise SystemExit("code was run without trust")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
classifier = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
image = Image.linear_gradient("L").convert("RGB")
print(json.dumps(classifier(image, candidate_labels=["cat", "dog", "gradient"])))
classifier.model.save_pretrained(again)
print(json.dumps(classifier.model.__class__.__module__))
"""


def test_pipeline_where_the_package_is_absent(checkpoint, tmp_path):
    # The first process runs the checkpoint's code and saves the model again, the second opens what that one saved.
    classifier = pipeline("zero-shot-image-classification", model=str(checkpoint))
    assert type(classifier.model) is CyCLIPResNetModel
    image = Image.linear_gradient("L").convert("RGB")
    expected = {
        item["label"]: item["score"] for item in classifier(image, candidate_labels=["cat", "dog", "gradient"])
    }

    again = tmp_path / "again"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for source, target in ((checkpoint, again), (again, tmp_path / "third")):
        if source == again:
            tiny_processor().save_pretrained(again)
        command = [sys.executable, "-c", ELSEWHERE, str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scores, module = (json.loads(line) for line in done.stdout.splitlines()[-2:])
        assert module.startswith("transformers_modules.")
        assert {item["label"]: item["score"] for item in scores} == pytest.approx(expected, abs=1e-6)
        auto_maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (checkpoint, target)]
        assert auto_maps[0] == auto_maps[1]
