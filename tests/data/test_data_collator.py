"""CyCLIPDataCollator: long captions are cut, and what is no caption is refused."""

import copy

import pytest

from modeling_cyclip import CyCLIPDataCollator
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
