"""CyCLIPDataCollator: long captions are cut, and what is no caption is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor, SiglipImageProcessor

from modeling_cyclip import CyCLIPDataCollator, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.data import data_collator
from tests.conftest import coloured_image


def test_long_captions_are_cut_to_the_tokenizers_length_and_keep_their_end(processor):
    batch = CyCLIPDataCollator(processor)([{"image": coloured_image("red"), "caption": "red number " * 20}])
    assert batch["input_ids"].shape == (1, 16)
    assert batch["input_ids"][0, -1] == processor.tokenizer.eos_token_id


def test_a_tokenizer_without_a_length_is_refused(processor):
    endless = copy.deepcopy(processor)
    endless.tokenizer = type(processor.tokenizer)(processor.tokenizer.get_vocab(), [])
    with pytest.raises(ValueError, match=r"model_max_length.*max_position_embeddings"):
        CyCLIPDataCollator(endless)


@pytest.mark.parametrize("caption", [3, None, [], [3], {"en": "red"}])
def test_what_is_no_caption_is_refused_with_its_column(processor, caption):
    with pytest.raises(ValueError, match="column `caption` must hold strings"):
        CyCLIPDataCollator(processor)([{"image": coloured_image("red"), "caption": caption}])


def test_plain_rows_are_opened_one_by_one(opened_at_once, processor, tmp_path):
    opened = opened_at_once(data_collator)
    for level in range(6):
        coloured_image("red", level, size=40).save(tmp_path / f"{level}.png")
    rows = [{"image": str(tmp_path / f"{level}.png"), "caption": "red"} for level in range(6)]
    assert CyCLIPDataCollator(processor)(rows)["pixel_values"].shape == (6, 3, 16, 16)
    assert len(opened) == 6 and max(opened) <= 2


@pytest.mark.parametrize(
    "image_processor, made",
    [
        (CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224), "224 x 224"),
        (CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 8, "width": 16}), "16 x 8"),
        (CLIPImageProcessor(size={"shortest_edge": 16}, do_center_crop=False), "24 x 16"),
        (SiglipImageProcessor(size={"height": 32, "width": 32}), "32 x 32"),
    ],
    ids=["larger", "not square", "not cropped", "another kind"],
)
def test_images_that_the_model_does_not_take_are_refused_at_the_start(processor, config, image_processor, made):
    collator = CyCLIPDataCollator(CLIPProcessor(image_processor, processor.tokenizer))
    with pytest.raises(ValueError, match=rf"makes images of {made} pixels, the model takes 16 x 16: [^\n]*$"):
        collator.check_model(config)


@pytest.mark.parametrize("crop_size", [16, {"height": 16, "width": 16}])
def test_images_that_the_model_takes_are_not_refused(processor, config, crop_size):
    image_processor = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size=crop_size)
    CyCLIPDataCollator(CLIPProcessor(image_processor, processor.tokenizer)).check_model(config)


def test_arrays_are_images_in_plain_rows_too(processor):
    image = coloured_image("red")
    collator = CyCLIPDataCollator(processor)
    arrays, images = (collator([{"image": each, "caption": "red"}]) for each in (np.asarray(image), image))
    assert torch.equal(arrays["pixel_values"], images["pixel_values"])


@pytest.mark.parametrize("half", ["tokenizer", "image_processor"])
def test_half_a_processor_is_refused_by_the_trainer(model, processor, pairs, tmp_path, half):
    arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    with pytest.raises(ValueError, match=r"`processing_class` is a CLIP\w+ alone: [^\n]*$"):
        CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=getattr(processor, half))
    # With a collator that has both, it is only what is saved.
    collator = CyCLIPDataCollator(processor)
    CyCLIPTrainer(model, arguments, pairs, processing_class=getattr(processor, half), data_collator=collator)


def test_a_compiled_model_names_the_argument(model, processor, pairs, tmp_path):
    arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    with pytest.raises(ValueError, match=r"a compiled model[^\n]*`torch_compile=True`"):
        CyCLIPTrainer(torch.compile(model), arguments, train_dataset=pairs, processing_class=processor)


def test_the_saved_processor_opens_in_older_transformers_too(model, processor, pairs, tmp_path):
    arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True)
    CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor).save_model()
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "CLIPImageProcessor" and written["crop_size"]["height"] == 16
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]["crop_size"]["height"] == 16
