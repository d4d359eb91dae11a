"""Models from named sizes, configurations and checkpoints, with processors that fit."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    BertConfig,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from modeling_cyclip import CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel
from modeling_cyclip.build_model import MODEL_SIZES, ModelArguments, build_model_and_processor
from modeling_cyclip.commands import train
from modeling_cyclip.data.tokenizer import train_tokenizer
from modeling_cyclip.evaluation.embeddings import load_checkpoint
from tests.conftest import coloured_image


CAPTIONS = ["a red square", "a blue circle on white"] * 3


def build(**arguments):
    return build_model_and_processor(ModelArguments(**{"vocab_size": 560, **arguments}), CAPTIONS)


def test_named_size_with_a_tokenizer_of_the_captions():
    model, processor = build(model_size="nano", image_size=32, patch_size=4, inmodal_cyclic_weight=0.1)
    text_config = model.config.text_config
    assert isinstance(model, CyCLIPModel)
    assert (model.config.inmodal_cyclic_weight, model.config.crossmodal_cyclic_weight) == (0.1, 0.25)
    assert text_config.vocab_size == len(processor.tokenizer)
    assert text_config.eos_token_id == processor.tokenizer.eos_token_id != 2
    assert processor.image_processor.crop_size["height"] == model.config.vision_config.image_size == 32
    assert processor.tokenizer.model_max_length == text_config.max_position_embeddings == 77


def test_every_named_size_is_a_valid_configuration():
    for size in MODEL_SIZES.values():
        CLIPConfig(**size)


def test_base_32_is_openais_vit():
    config = CLIPConfig(**MODEL_SIZES["base-32"])
    assert config.vision_config.to_diff_dict() == CLIPConfig().vision_config.to_diff_dict()
    assert config.text_config.to_diff_dict() == CLIPConfig().text_config.to_diff_dict()


def test_checkpoint_keeps_its_weights_and_takes_new_cyclic_ones(model, processor, tmp_path):
    CLIPModel(CLIPConfig(**model.config.to_dict())).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reopened, reopened_processor = build(model_name_or_path=str(tmp_path), crossmodal_cyclic_weight=0.0)
    assert reopened.config.crossmodal_cyclic_weight == 0 and reopened.config.inmodal_cyclic_weight == 0.25
    assert reopened_processor.tokenizer("red")["input_ids"] == processor.tokenizer("red")["input_ids"]


def test_configuration_from_a_file_is_trained_from_scratch(config, tmp_path):
    config.save_pretrained(tmp_path)
    model, processor = build(config_name=str(tmp_path / "config.json"))
    assert model.config.vision_config.hidden_size == 16
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert torch.isfinite(model.visual_projection.weight).all()


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="there are pico"):
        build(model_size="huge")
    with pytest.raises(ValueError, match="patches of 5"):
        build(model_size="nano", patch_size=5)


def test_rn50_is_the_papers_tower():
    model, processor = build(model_size="rn50", image_size=32, inmodal_cyclic_weight=0.1)
    assert isinstance(model, CyCLIPResNetModel)
    assert model.config.vision_config.depths == (3, 4, 6, 3) and model.config.projection_dim == 1024
    assert (model.config.inmodal_cyclic_weight, model.config.crossmodal_cyclic_weight) == (0.1, 0.25)
    assert processor.image_processor.crop_size["height"] == 32
    with pytest.raises(ValueError, match="no patches"):
        build(model_size="rn50", patch_size=8)


def test_resnet_configuration_from_a_file(tmp_path):
    vision_config = {"depths": [1, 1, 1, 1], "embedding_size": 8, "num_attention_heads": 4, "image_size": 32}
    text_config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CyCLIPResNetConfig(vision_config=vision_config, text_config=text_config).save_pretrained(tmp_path)
    model, _ = build(config_name=str(tmp_path), crossmodal_cyclic_weight=0.0)
    assert isinstance(model, CyCLIPResNetModel)
    assert model.config.vision_config.embedding_size == 8 and model.config.crossmodal_cyclic_weight == 0


def test_the_cyclic_gradient_is_bounded_unless_told_otherwise(config, tmp_path):
    config.save_pretrained(tmp_path)
    assert build(config_name=str(tmp_path))[0].config.cyclic_max_gradient_share == 1.0
    assert build(config_name=str(tmp_path), cyclic_max_gradient_share=0.3)[0].config.cyclic_max_gradient_share == 0.3
    assert (
        build(config_name=str(tmp_path), cyclic_max_gradient_share=math.inf)[0].config.cyclic_max_gradient_share
        is None
    )
    with pytest.raises(ValueError, match="cyclic_max_gradient_share"):
        build(config_name=str(tmp_path), cyclic_max_gradient_share=0)
    config.cyclic_max_gradient_share = 0.3
    config.save_pretrained(tmp_path)
    assert build(config_name=str(tmp_path))[0].config.cyclic_max_gradient_share == 0.3


@pytest.mark.parametrize("model_size", ["nano", "rn50"])
def test_both_towers_attend_as_they_are_told(model_size):
    model, _ = build(model_size=model_size, image_size=32, attn_implementation="eager")
    for tower in (model.vision_model, model.text_model):
        assert tower.config._attn_implementation == "eager"
    assert "attn_implementation" not in str(model.config.to_dict())
    with pytest.raises(ValueError, match="fast"):
        build(model_size=model_size, image_size=32, attn_implementation="fast")


@pytest.mark.parametrize("tower, projection", [("vision", "visual"), ("text", "text")])
def test_frozen_towers_have_no_gradient_and_stay_in_evaluation_mode(config, tmp_path, tower, projection):
    config.save_pretrained(tmp_path)
    model, _ = build(config_name=str(tmp_path), **{f"freeze_{tower}": True})
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = (f"{tower}_model.", f"{projection}_projection.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(expected)} != set()
    model.train()
    inputs = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "pixel_values": torch.randn(2, 3, 16, 16)}
    model(**inputs, return_loss=True).loss.backward()
    assert [getattr(model, f"{name}_model").training for name in ("vision", "text")] == [
        tower != "vision",
        tower != "text",
    ]


def test_what_is_no_clip_is_refused(tmp_path):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a model of type bert, not of a CLIP"):
        build(config_name=str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="nowhere cannot be opened"):
        build(config_name=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere, which is no folder here, cannot be opened as a checkpoint"):
        build(model_name_or_path=str(tmp_path / "nowhere"))


@pytest.fixture
def checkpoint(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


OPENERS = {
    "from_pretrained": CyCLIPModel.from_pretrained,
    "train": lambda folder: build(model_name_or_path=str(folder)),
    "evaluate": lambda folder: load_checkpoint(str(folder), "fp32", torch.device("cpu")),
}
each_opener = pytest.mark.parametrize("opened_by", OPENERS.values(), ids=OPENERS)
each_command = pytest.mark.parametrize("opened_by", [OPENERS["train"], OPENERS["evaluate"]], ids=["train", "evaluate"])


@pytest.mark.parametrize("model_type", ["siglip", "chinese_clip", "clipseg", "clip_vision_model", "bert"])
def test_other_kinds_of_checkpoints_do_not_open_as_a_clip(model_type, checkpoint):
    AutoConfig.for_model(model_type).save_pretrained(checkpoint)
    with pytest.raises(
        ValueError, match=f"of type {model_type}, which CyCLIPModel does not open.*CyCLIPTrainer trains"
    ):
        CyCLIPModel.from_pretrained(checkpoint)


@each_command
@pytest.mark.parametrize("model_type", ["clip_vision_model", "clip_text_model", "bert"])
def test_one_encoder_is_refused_by_name(opened_by, model_type, checkpoint):
    AutoConfig.for_model(model_type).save_pretrained(checkpoint)
    with pytest.raises(
        ValueError, match=f"of type {model_type}, which has no get_image_features and no get_text_feat"
    ):
        opened_by(checkpoint)


@each_command
@pytest.mark.parametrize("model_type", ["siglip", "chinese_clip", "altclip", "metaclip_2", "clipseg"])
def test_the_configuration_of_another_kind_is_refused(opened_by, model_type, checkpoint):
    AutoConfig.for_model(model_type).save_pretrained(checkpoint)
    with pytest.raises(
        ValueError, match=r"has weights of other shapes than its configuration: its config\.json is of ano"
    ):
        opened_by(checkpoint)


def test_two_encoders_of_other_kinds_do_not_become_a_random_clip(processor, tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = ViTConfig(**tower, image_size=16, patch_size=8), BertConfig(**tower, vocab_size=50)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs)
    VisionTextDualEncoderModel(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type vision-text-dual-encoder, which CyCLIPModel does not open"):
        CyCLIPModel.from_pretrained(tmp_path)


def test_the_command_refuses_in_one_line(checkpoint, tmp_path):
    AutoConfig.for_model("bert").save_pretrained(checkpoint)
    for colour in ("red", "blue"):
        coloured_image(colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "pairs.csv").write_text("image,caption\nred.png,red\nblue.png,blue\n")
    arguments = ["--model_name_or_path", checkpoint, "--train_file", tmp_path / "pairs.csv", "--output_dir", tmp_path]
    with pytest.raises(SystemExit, match=r"^error: \S+ is a checkpoint of type bert, [^\n]*$"):
        train.run([*map(str, arguments), "--log_level", "warning"])


def _openclip_folder(folder):
    (folder / "open_clip_config.json").write_text("{}")
    save_file({"logit_scale": torch.ones(())}, folder / "open_clip_model.safetensors")
    return folder


def _openclip_folder_of_pickles(folder):
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_pytorch_model.bin").touch()
    return folder


def _training_folder(folder):
    for epoch in (1, 2, 10):
        (folder / f"epoch_{epoch}.pt").touch()
        os.utime(folder / f"epoch_{epoch}.pt", (epoch, epoch))
    return folder


@each_opener
@pytest.mark.parametrize(
    "write, file",
    [
        (_openclip_folder, "open_clip_model.safetensors"),
        (_openclip_folder_of_pickles, "open_clip_pytorch_model.bin"),
        (_training_folder, "epoch_10.pt"),
        (lambda folder: _training_folder(folder) / "epoch_1.pt", "epoch_1.pt"),
        (lambda folder: _openclip_folder(folder) / "open_clip_model.safetensors", "open_clip_model.safetensors"),
    ],
    ids=["openclip", "openclip, pickle", "training", "file", "safetensors"],
)
def test_weights_of_other_formats_name_the_command_that_converts_them(opened_by, write, file, tmp_path):
    given = write(tmp_path)
    with pytest.raises(ValueError, match=rf"`cyclip convert {tmp_path / file} NEW_FOLDER` [^\n]*$"):
        opened_by(given)


@each_opener
def test_missing_weights_are_refused(opened_by, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["logit_scale"], weights["visual_projection.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match="lacks weights of a CLIP model, which would be random: logit_scale and 1 other"
    ):
        opened_by(checkpoint)


@each_opener
def test_a_classifier_over_clips_vision_tower_is_refused(opened_by, config, processor, tmp_path):
    CLIPForImageClassification(CLIPConfig(**config.to_dict())).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks weights of a CLIP model"):
        opened_by(tmp_path)


@each_opener
def test_weights_of_other_shapes_are_refused(opened_by, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(12, 15)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"text_projection\.weight is \(12, 15\), not \(12, 16\), and 0 others"):
        opened_by(checkpoint)


@each_opener
def test_weights_that_no_clip_has_are_passed_over(opened_by, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    # As transformers saved it before version 4.31.
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file({**weights, "head.weight": torch.zeros(2)}, checkpoint / "model.safetensors", {"format": "pt"})
    opened_by(checkpoint)


def test_a_saved_configuration_does_not_set_the_precision_of_new_weights(checkpoint, model):
    model.to(torch.bfloat16).save_pretrained(checkpoint)
    CyCLIPModel.from_pretrained(checkpoint).save_pretrained(checkpoint)
    built, _ = build(config_name=str(checkpoint))
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_size": "nano", "save_dtype": "fp16"}, "float32, float16, bfloat16, auto, got fp16"),
        ({"model_size": "nano", "save_dtype": "auto"}, "give it with --model_name_or_path"),
        ({"model_name_or_path": "x", "lora_rank": 2, "save_dtype": "float16"}, "needs --merge_lora"),
    ],
)
def test_precisions_that_cannot_be_saved_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)


def test_a_processor_for_images_of_another_size_is_refused(checkpoint, processor):
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224).save_pretrained(checkpoint / "other")
    CLIPProcessor(CLIPImageProcessor.from_pretrained(checkpoint / "other"), processor.tokenizer).save_pretrained(
        checkpoint
    )
    with pytest.raises(ValueError, match="makes images of 224 x 224 pixels, the model takes 16 x 16"):
        build(model_name_or_path=str(checkpoint))


@pytest.mark.parametrize("lacking", ["tokenizer", "image_processor"])
def test_a_checkpoint_without_half_of_its_processor_says_which(checkpoint, processor, lacking):
    half = {"tokenizer": processor.image_processor, "image_processor": processor.tokenizer}[lacking]
    for path in checkpoint.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    half.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=rf"{checkpoint} [^\n]*{lacking.replace('_', ' ')}[^\n]*$"):
        build(model_name_or_path=str(checkpoint))


@pytest.mark.parametrize("name", ["nobody/nothing", "an_empty_folder"])
def test_a_tokenizer_that_cannot_be_opened_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "an_empty_folder").mkdir()
    with pytest.raises(ValueError, match=f"--tokenizer_name {name} "):
        build(model_size="nano", image_size=32, tokenizer_name=name)


@pytest.mark.parametrize("limit", [512, None])
def test_a_saved_tokenizer_takes_no_more_tokens_than_the_model(tmp_path, limit):
    tokenizer = train_tokenizer(CAPTIONS, 560, 77)
    tokenizer.model_max_length = limit or VERY_LARGE_INTEGER
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model, processor = build(model_size="nano", image_size=32, tokenizer_name=str(tmp_path / "tokenizer"))
    model.save_pretrained(tmp_path / "checkpoint")
    processor.tokenizer.model_max_length = limit or VERY_LARGE_INTEGER
    processor.save_pretrained(tmp_path / "checkpoint")
    _, reopened = build(model_name_or_path=str(tmp_path / "checkpoint"))
    assert (
        build(model_size="nano", image_size=32, tokenizer_name=str(tmp_path / "tokenizer"))[
            1
        ].tokenizer.model_max_length
        == 77
    )
    assert reopened.tokenizer.model_max_length == 77


def word_tokenizer(**options):
    """Ends a text as T5's tokenizer does, with an end-of-text token alone, and the padding token is another one."""
    backend = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", **options)


@pytest.mark.parametrize(
    "options, message",
    [({}, "no padding token"), ({"pad_token": "<pad>", "padding_side": "left"}, "pads before a text")],
)
def test_tokenizers_that_cannot_make_a_batch_are_refused(tmp_path, options, message):
    word_tokenizer(model_max_length=512, **options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(model_size="nano", image_size=32, tokenizer_name=str(tmp_path))
