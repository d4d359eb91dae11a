"""Two pretrained towers make one model, which opens in plain transformers."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.utils import is_timm_available

from modeling_cyclip import CyclicTerms
from modeling_cyclip.data.tokenizer import context_length
from modeling_cyclip.dual_encoder import check_embeddings, train_with_terms
from modeling_cyclip.towers import pair_towers, timm_image_processor
from tests.dual_encoders import POSITIONS, VISION, bert_tokenizer, clip, roberta_tokenizer, siglip, text_config


def images():
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


VISION_TOWERS = {
    "vit": lambda: (ViTModel(ViTConfig(**VISION)), images()),
    "dinov2": lambda: (Dinov2Model(Dinov2Config(**VISION)), images()),
    "swin": lambda: (
        SwinModel(SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1], num_heads=[1])),
        images(),
    ),
    "convnext": lambda: (
        ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2)),
        images(),
    ),
    "resnet": lambda: (ResNetModel(ResNetConfig(hidden_sizes=[8, 12], depths=[1, 1], embedding_size=8)), images()),
    "clip": lambda: parts(clip, "image_processor"),
    "siglip": lambda: parts(siglip, "image_processor"),
}
ROBERTA = {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
TEXT_TOWERS = {
    "bert": lambda: (BertModel(BertConfig(**text_config(bert_tokenizer()))), bert_tokenizer()),
    "xlm-r": lambda: (
        XLMRobertaModel(XLMRobertaConfig(**text_config(roberta_tokenizer(), **ROBERTA))),
        roberta_tokenizer(),
    ),
    "mpnet": lambda: (MPNetModel(MPNetConfig(**text_config(roberta_tokenizer(), **ROBERTA))), roberta_tokenizer()),
    "clip": lambda: parts(clip, "tokenizer"),
    "siglip": lambda: parts(siglip, "tokenizer"),
    "t5": lambda: (
        T5Model(T5Config(vocab_size=60, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16)),
        bert_tokenizer(),
    ),
    "electra": lambda: (
        ElectraModel(ElectraConfig(**text_config(bert_tokenizer()), embedding_size=16)),
        bert_tokenizer(),
    ),
}


def parts(kind, part):
    model, processor = kind()
    return model, getattr(processor, part)


@pytest.fixture
def paired(tmp_path):
    def pair(vision, text, **options):
        torch.manual_seed(0)
        for kind, towers, name in (("vision", VISION_TOWERS, vision), ("text", TEXT_TOWERS, text)):
            for saved in towers[name]():
                saved.save_pretrained(tmp_path / kind)
        return pair_towers(str(tmp_path / "vision"), str(tmp_path / "text"), **options)

    return pair


@pytest.mark.parametrize(
    "vision, text",
    [(name, "bert") for name in VISION_TOWERS if name != "resnet"]
    + [("vit", name) for name in ("xlm-r", "mpnet", "clip")],
)
def test_towers_keep_their_weights_and_open_again_as_one_model(paired, tmp_path, vision, text):
    model, processor = paired(vision, text)
    check_embeddings(model, processor, context_length(processor.tokenizer, model.config))
    for kind in ("vision", "text"):
        start = AutoModel.from_pretrained(tmp_path / kind)
        start = start.get_submodule(f"{kind}_model") if hasattr(start, "get_image_features") else start
        weights = getattr(model, f"{kind}_model").state_dict()
        assert all(weights[name].equal(tensor) for name, tensor in start.state_dict().items())

    model.save_pretrained(tmp_path / "pair")
    plain = AutoModel.from_pretrained(tmp_path / "pair")
    inputs = processor(text=["a red square", "blue"], padding=True, return_tensors="pt")
    inputs["pixel_values"] = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert plain(**inputs).logits_per_image.equal(model.eval()(**inputs).logits_per_image)


@pytest.mark.parametrize(
    "vision, text, message",
    [
        ("vit", "siglip", "a SiglipTextModel, which transformers' AutoModel does not open by itself"),
        ("resnet", "bert", r"cannot embed images of shape \(3, 16, 16\)"),
        ("vit", "electra", "cannot embed captions of 16 tokens: .*pooler_output"),
        ("vit", "t5", "VisionTextDualEncoderModel cannot embed captions of 16 tokens"),
    ],
)
def test_what_makes_no_dual_encoder_is_refused(paired, vision, text, message):
    with pytest.raises(ValueError, match=message) as error:
        model, processor = paired(vision, text)
        check_embeddings(model, processor, context_length(processor.tokenizer, model.config))
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_is_given_takes_the_place_of_the_text_towers(paired, tmp_path):
    paired("vit", "bert")
    for path in (tmp_path / "text").glob("tokenizer*"):
        path.unlink()
    towers, tokenizer = (str(tmp_path / "vision"), str(tmp_path / "text")), bert_tokenizer()
    assert pair_towers(*towers, tokenizer=tokenizer)[1].tokenizer is tokenizer


TIMM = {
    "input_size": (3, 20, 20),
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bilinear",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


@pytest.mark.parametrize("crop_mode, resized", [("center", (33, 22)), ("squash", (22, 22))])
def test_pixels_of_a_timm_tower_are_resized_and_cropped_as_timm_does(crop_mode, resized):
    image = Image.effect_noise((60, 40), 100).convert("RGB")
    processor = timm_image_processor({**TIMM, "crop_mode": crop_mode})
    pixels = processor(image, return_tensors="pt").pixel_values[0]
    expected = np.asarray(image.resize(resized, Image.Resampling.BILINEAR)) / 127.5 - 1
    left = (resized[0] - 20) // 2
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected[1:21, left : left + 20], atol=1.01 / 127.5)


@pytest.mark.parametrize("wrong", [{"input_size": (3, 20, 30)}, {"crop_mode": "border"}, {"interpolation": "random"}])
def test_timm_images_that_clips_processor_cannot_make_are_refused(wrong):
    with pytest.raises(ValueError, match="only square ones by center or squash"):
        timm_image_processor({**TIMM, **wrong})


@pytest.mark.parametrize(
    "architecture", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_a_timm_tower_opens_again_with_its_image_processor(paired, tmp_path, architecture):
    timm = pytest.importorskip("timm")
    paired("vit", "bert")
    timm.models.save_for_hf(timm.create_model(architecture), tmp_path / "timm", {"num_classes": 1000})
    towers = str(tmp_path / "timm"), str(tmp_path / "text")
    with pytest.raises(ValueError, match=r"its model cannot be opened: .*multiple values for .*'num_classes'"):
        pair_towers(*towers)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    del config["model_args"]
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))

    model, processor = pair_towers(*towers)
    check_embeddings(model, processor, context_length(processor.tokenizer, model.config))
    model.save_pretrained(tmp_path / "pair")
    processor.save_pretrained(tmp_path / "pair")
    plain, plain_processor = (
        AutoModel.from_pretrained(tmp_path / "pair"),
        AutoProcessor.from_pretrained(tmp_path / "pair"),
    )
    inputs = plain_processor(text=["a red square"], images=[Image.new("RGB", (40, 30))], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits_per_image, model.eval()(**inputs).logits_per_image)


def test_without_timm_its_towers_are_refused_in_one_line(paired, tmp_path):
    if is_timm_available():
        pytest.skip("timm is installed")
    paired("vit", "bert")
    (tmp_path / "vision" / "config.json").write_text(json.dumps({"model_type": "timm_wrapper"}))
    with pytest.raises(ValueError, match="requires the timm library") as error:
        pair_towers(str(tmp_path / "vision"), str(tmp_path / "text"))
    assert "\n" not in str(error.value)


def test_every_parameter_that_trains_gets_a_gradient(paired):
    # DDP waits for all of them.
    model, processor = paired("dinov2", "bert")
    train_with_terms(model, CyclicTerms())
    inputs = processor(text=["a red square", "blue"], padding=True, return_tensors="pt")
    model.train()(**inputs, pixel_values=torch.randn(2, 3, 16, 16), return_loss=True).loss.backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_a_tower_without_its_last_layer_begins_at_random_unless_it_is_frozen(paired, tmp_path, caplog):
    paired("vit", "bert")
    tower = ViTModel.from_pretrained(tmp_path / "vision", add_pooling_layer=False)
    tower.save_pretrained(tmp_path / "vision")
    towers = str(tmp_path / "vision"), str(tmp_path / "text")
    with caplog.at_level(logging.WARNING, "modeling_cyclip"):
        pair_towers(*towers)
    assert "lacks pooler.dense.bias and 1 others of its weights: they begin at random" in caplog.text
    with pytest.raises(ValueError, match=r"lacks pooler\.dense\.bias and 1 others .* leave out --freeze_vision"):
        pair_towers(*towers, frozen=("vision",))
