"""The tokenizer trained on captions, and its agreement with the model's pooling."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, CLIPConfig

from modeling_cyclip.data.tokenizer import check_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a photo of a cat", "two dogs and a cat's bone"] * 5, vocab_size=560, max_length=12)


def config_with(eos_token_id, vocab_size=600):
    return CLIPConfig(text_config={"eos_token_id": eos_token_id, "vocab_size": vocab_size})


def test_words_of_the_captions_are_tokens(tokenizer):
    assert tokenizer.tokenize("A photo of a CAT") == ["a</w>", "photo</w>", "of</w>", "a</w>", "cat</w>"]


@pytest.mark.parametrize("text", ["", "日本語", "🤩 é ~ Ω", "zebra\nquux", "x" * 100, "don't"])
def test_any_text_ends_once_with_the_highest_id(tokenizer, text):
    ids = tokenizer(text, truncation=True)["input_ids"]
    assert len(ids) <= 12
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert ids.count(tokenizer.eos_token_id) == 1


def test_unseen_text_is_not_lost(tokenizer):
    for text in ("日本", "🤩", "zebra quux"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_saved_tokenizer_opens_with_plain_transformers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    text = "a cat's 日本 photo"
    assert reopened(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert reopened.model_max_length == 12


def test_vocabulary_keeps_its_bound():
    captions = [f"word{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"]
    assert len(train_tokenizer(captions, vocab_size=540, max_length=12)) <= 540
    with pytest.raises(ValueError, match="514"):
        train_tokenizer(captions, vocab_size=500, max_length=12)


def test_agreeing_tokenizer_and_model_pass(tokenizer):
    check_tokenizer(tokenizer, config_with(tokenizer.eos_token_id))
    # The legacy value, with which CLIP pools at the highest id.
    check_tokenizer(tokenizer, config_with(2))


def test_disagreement_is_refused_with_what_to_do(tokenizer):
    with pytest.raises(ValueError, match=r"text_config\.eos_token_id"):
        check_tokenizer(tokenizer, config_with(7))
    with pytest.raises(ValueError, match="no end-of-text token"):
        check_tokenizer(SimpleNamespace(eos_token_id=None), CLIPConfig())
    with pytest.raises(ValueError, match="embeddings for 100 only"):
        check_tokenizer(tokenizer, config_with(tokenizer.eos_token_id, vocab_size=100))


def test_legacy_value_is_refused_where_end_of_text_is_not_the_highest_id(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    extended = AutoTokenizer.from_pretrained(tmp_path)
    extended.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match="highest id"):
        check_tokenizer(extended, config_with(2))
