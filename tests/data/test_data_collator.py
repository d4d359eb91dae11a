"""CyCLIPDataCollator: long captions are cut, and what is no caption is refused."""

import copy
import weakref

import pytest

from modeling_cyclip import CyCLIPDataCollator
from modeling_cyclip.data import data_collator
from modeling_cyclip.data.images import load_image
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


def test_plain_rows_are_opened_one_by_one(monkeypatch, processor, tmp_path):
    opened, in_memory = [], []

    def counted(*arguments):
        image = load_image(*arguments)
        opened.append(weakref.ref(image))
        in_memory.append(sum(reference() is not None for reference in opened))
        return image

    monkeypatch.setattr(data_collator, "load_image", counted)
    for level in range(6):
        coloured_image("red", level, size=40).save(tmp_path / f"{level}.png")
    rows = [{"image": str(tmp_path / f"{level}.png"), "caption": "red"} for level in range(6)]
    assert CyCLIPDataCollator(processor)(rows)["pixel_values"].shape == (6, 3, 16, 16)
    assert len(in_memory) == 6 and max(in_memory) <= 2
