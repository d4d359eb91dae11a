"""The tokenizer trained on captions, its agreement with the model's pooling, and how captions are cut."""

import copy
import itertools
import logging
import random
import string

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, CLIPConfig

from modeling_cyclip.data import tokenizer as tokenizer_module
from modeling_cyclip.data.tokenizer import check_tokenizer, context_length, tokenize, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a photo of a cat", "two dogs and a cat's bone"] * 5, vocab_size=560, max_length=12)


def config_with(eos_token_id, vocab_size=600, max_position_embeddings=12):
    text_config = {"eos_token_id": eos_token_id, "vocab_size": vocab_size}
    return CLIPConfig(text_config={**text_config, "max_position_embeddings": max_position_embeddings})


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
        endless = copy.deepcopy(tokenizer)
        endless.eos_token = None
        check_tokenizer(endless, config_with(endless.bos_token_id))
    with pytest.raises(ValueError, match="embeddings for 100 only"):
        check_tokenizer(tokenizer, config_with(tokenizer.eos_token_id, vocab_size=100))


def test_legacy_value_is_refused_where_end_of_text_is_not_the_highest_id(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    extended = AutoTokenizer.from_pretrained(tmp_path)
    extended.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match="highest id"):
        check_tokenizer(extended, config_with(2))


def altered(tokenizer, template=None, **attributes):
    """The tokenizer, with other tokens around a text, such as `["$A"]` for none."""
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    if template is not None:
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in template if token != "$A"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.mark.parametrize("template", [["$A"], [START, "$A"], [END, "$A"]], ids=["no end", "start only", "end first"])
def test_a_tokenizer_that_appends_no_end_is_refused(tokenizer, template):
    # As those of GPT-2, Llama and Qwen: the model would read every caption at its first token.
    with pytest.raises(ValueError, match="does not end a text with its end-of-text token"):
        check_tokenizer(altered(tokenizer, template), config_with(tokenizer.eos_token_id))


@pytest.mark.parametrize("pad_token", ["!", END, START])
def test_a_tokenizer_that_pads_on_the_left_is_refused(tokenizer, pad_token):
    for eos_token_id in (tokenizer.eos_token_id, 2):
        check_tokenizer(altered(tokenizer, pad_token=pad_token), config_with(eos_token_id))
    padding_left = altered(tokenizer, pad_token=pad_token, padding_side="left")
    with pytest.raises(ValueError, match="padding_side"):
        check_tokenizer(padding_left, config_with(tokenizer.eos_token_id))


def test_a_tokenizer_without_a_padding_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no padding token"):
        check_tokenizer(altered(tokenizer, pad_token=None), config_with(tokenizer.eos_token_id))


@pytest.mark.parametrize(
    ("of_tokenizer", "of_model", "expected", "level"),
    [
        (12, 12, 12, None),
        (12, 248, 12, logging.WARNING),
        (77, 12, 12, logging.INFO),
        (10**30, 12, 12, logging.INFO),
    ],
)
def test_captions_are_cut_to_what_both_take_which_is_said_once(
    tokenizer, caplog, of_tokenizer, of_model, expected, level
):
    tokenizer_module.logger.warning_once.cache_clear()
    tokenizer_module.logger.info_once.cache_clear()
    tokenizer = altered(tokenizer, model_max_length=of_tokenizer)
    config = config_with(tokenizer.eos_token_id, max_position_embeddings=of_model)
    with caplog.at_level(logging.INFO, "modeling_cyclip"):
        assert [context_length(tokenizer, config) for _ in range(2)] == [expected] * 2
    said = [record.levelno for record in caplog.records if record.name == tokenizer_module.__name__]
    assert said == ([] if level is None else [level])
    if level == logging.WARNING:
        assert "cut to 12 tokens" in caplog.text and "248" in caplog.text


def letters(number):
    draws = random.Random(number)
    return "".join(draws.choice(string.ascii_lowercase) for _ in range(number))


LONG_TEXTS = {
    "one word": letters(50_000),
    "a long word behind a short one": "a " + letters(50_000),
    "words of a token": "a cat " * 10_000,
    "long words": " ".join(letters(number) for number in range(900, 950)),
    "one long token": "=" * 50_000,
    "long tokens": ("=" * 256 + " ") * 200,
    "space before": " " * 50_000 + "a photo of a cat",
    "space between": "a" + "\n" * 50_000 + "cat's bone " * 5,
    "emoji": "🤩👩🏽‍🚀" * 10_000,
    "marks that become one character": "\u03b1\u0313\u0300\u0345" * 20_000,
    "characters that become two": "İ" * 20_000,
}


class Reader:
    """A tokenizer that remembers the longest text it got, without its white space."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **options):
        self.longest = max(len("".join(text.split())) for text in texts)
        return self.tokenizer(texts, **options)


@pytest.fixture(scope="module")
def tokenizer_of_long_tokens():
    tokenizer = train_tokenizer(["a photo of a cat", "two dogs", "=" * 256, "🤩🤩", letters(200)], 900, max_length=12)
    assert max(map(len, tokenizer.get_vocab())) >= 200
    return tokenizer


@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_what_is_cut_of_a_long_text_changes_no_token(tokenizer_of_long_tokens, text):
    reader = Reader(tokenizer_of_long_tokens)
    expected = tokenizer_of_long_tokens(
        [text, "a cat"], padding="longest", truncation=True, max_length=12, return_tensors="pt"
    )
    tokens = tokenize(reader, [text, "a cat"], 12)
    assert tokens.keys() == {"input_ids", "attention_mask"}
    assert all(torch.equal(tokens[name], expected[name]) for name in tokens)
    assert reader.longest < 15_000


def test_a_long_caption_trains_the_tokenizer_with_its_beginning(caplog):
    captions = ["a photo of a cat"] * 5
    trained = train_tokenizer([*captions, "x" * 9000, "y" * 9000], vocab_size=600, max_length=12)
    assert 100 < max(map(len, trained.get_vocab())) <= 12 * 64 + len("</w>")
    assert [record.message for record in caplog.records] == [
        "2 captions are longer than 768 characters: the tokenizer is trained on their beginnings."
    ]


def test_the_same_captions_give_the_same_tokenizer():
    # Many merges are equally frequent here, and which of them comes first must not be chance.
    words = ["".join(letters) for letters in itertools.product("abcde", "fghij", "klmno")]
    captions = [f"{word} {word[::-1]}" for word in words]
    vocabularies = [train_tokenizer(captions, 800, 16).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
