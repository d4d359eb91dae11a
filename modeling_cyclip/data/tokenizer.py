"""A CLIP tokenizer for the captions at hand, how captions become tokens, and the check that tokenizer and model agree."""

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import LARGE_INTEGER
from transformers.utils import logging

from ..distributed import is_first_process


logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
MIN_VOCAB_SIZE = 2 * 256 + len(SPECIAL_TOKENS)
# The time that training takes is quadratic in the length of a word. No usual token is longer.
CHARACTERS_PER_TOKEN = 64
# Shorter captions are tokenised whole, which takes milliseconds.
LONG_CAPTION = 10_000

NO_PADDING = (
    "The tokenizer has no padding token, which captions of unequal length need in a batch: set its `pad_token`, for example to "
    "its end-of-text token."
)
# The types of configuration whose text tower is CLIP's: causal, read at the end-of-text token.
CLIP_TYPES = ("clip", "cyclip")
# Text towers that number a caption's positions from behind the id of the padding token on.
POSITIONS_BEHIND_PADDING = {
    "altclip_text_model", "camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def tokenize(
    tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int, padding: str = "longest"
) -> dict[str, Tensor]:
    """
    `input_ids` of captions, cut to `max_length` tokens and padded to the longest one (or, with `padding="max_length"`, to
    `max_length`), and `attention_mask`, if the tokenizer gives one: that of SigLIP does not, since its model was trained to
    read the padding. Of a very long caption the tokenizer gets only so much that these tokens stay the same.
    """
    if max(map(len, captions)) > LONG_CAPTION:
        captions = list(_beginnings(captions, tokenizer, max_length))
    inputs = tokenizer(captions, padding=padding, truncation=True, max_length=max_length, return_tensors="pt")
    # The types of tokens that some give are those of a first text, which every model takes where it is told of none.
    return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}


def padding_of(config: PreTrainedConfig) -> str:
    """
    How captions are padded for a dual encoder with this configuration. SigLIP reads a caption at its last position, which was
    the 64th in its training, padding or not. transformers' pipeline knows it by its name, too.
    """
    return "max_length" if "siglip" in config.text_config.model_type else "longest"


def positions_of(config: PreTrainedConfig) -> int:
    """The number of tokens that a dual encoder with this configuration has positions for: a huge one where they are relative."""
    text_config = config.text_config
    taken = text_config.pad_token_id + 1 if text_config.model_type in POSITIONS_BEHIND_PADDING else 0
    return getattr(text_config, "max_position_embeddings", LARGE_INTEGER) - taken


def _beginnings(captions: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[str]:
    # White space gives no tokens, and up to four characters become one (NFC). A cut within a word may change tokens before
    # it, so there is room for that, too.
    longest_token = max(map(len, tokenizer.get_vocab()))
    beginning = re.compile(rf"(?:\s*+\S){{0,{4 * max_length * longest_token}}}+")
    for caption in captions:
        yield beginning.match(caption)[0]


def context_length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """
    The number of tokens that captions are cut to, the end-of-text token among them: as many as both the tokenizer and the
    model take. The log says once if they differ.
    """
    positions = positions_of(config)
    # All processes of a training come here, but the log needs it once.
    if is_first_process():
        if tokenizer.model_max_length < positions < LARGE_INTEGER:
            logger.warning_once(
                f"Captions are cut to {tokenizer.model_max_length} tokens, though the model has positions for {positions}: "
                f"set the tokenizer's `model_max_length` to {positions} to use them all."
            )
        elif tokenizer.model_max_length > positions:
            logger.info_once(f"Captions are cut to the {positions} tokens that the model has positions for.")
    return min(tokenizer.model_max_length, positions)


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    r"""
    Trains CLIP's lower-cased byte-level BPE. The vocabulary is laid out like OpenAI's: all 256 bytes, all bytes that end a
    word, the merges, then start and end of text. So every text has tokens, and none is taken for the unknown token, which
    is end of text, where the model reads the text feature. End of text has the highest id, on which both ways of finding
    it in a CLIP model rely.

    Args:
        captions (`Iterable[str]`):
            Texts to train on. Of one with more characters than the context can hold, the beginning counts.
        vocab_size (`int`):
            Largest number of tokens, at least 514. Few captions give fewer.
        max_length (`int`):
            Context length of the model, in tokens.

    Returns:
        [`~transformers.CLIPTokenizer`]

    Raises:
        `ValueError`: a vocabulary too small for the bytes alone.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"A byte-level vocabulary needs --vocab_size {MIN_VOCAB_SIZE} at least, got {vocab_size}.")
    is_main = is_first_process()
    if is_main:
        logger.info("A tokenizer is trained on the captions. With millions of them, that takes some minutes.")
    max_characters = CHARACTERS_PER_TOKEN * max_length
    num_cut = 0

    def beginnings() -> Iterator[str]:
        nonlocal num_cut
        for caption in tqdm(captions, "Reading captions for the tokenizer", delay=2, disable=not is_main):
            num_cut += len(caption) > max_characters
            yield caption[:max_characters]

    alphabet = sorted(ByteLevel.alphabet())
    endings = [character + "</w>" for character in alphabet]
    # Of equally frequent merges the trainer takes that of the lowest ids. Bytes that end a word would get theirs in the order of
    # a hash table, which differs from run to run, if they were not named beforehand.
    trained = CLIPTokenizer().train_new_from_iterator(
        beginnings(), vocab_size=vocab_size + len(endings), new_special_tokens=endings, show_progress=is_main
    )
    if num_cut and is_main:
        logger.warning(
            f"{num_cut} captions are longer than {max_characters} characters: the tokenizer is trained on their beginnings."
        )
    tokens = alphabet + endings
    merges = []
    for left, right in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]:
        if len(tokens) + len(SPECIAL_TOKENS) == vocab_size:
            break
        merges.append((left, right))
        tokens.append(left + right)
    tokens = list(dict.fromkeys(tokens)) + SPECIAL_TOKENS
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=max_length
    )


def is_empty(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has special tokens alone: transformers makes such a one where it finds no vocabulary."""
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """
    Raises a `ValueError` where there is no vocabulary, where ids exceed the model's embeddings, where captions could not be
    padded, or where a CLIP would not find its end-of-text token.
    """
    if is_empty(tokenizer):
        raise ValueError("The tokenizer has no vocabulary: take the files of the one that the model came with.")
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeddings for {config.text_config.vocab_size} only: take "
            "the tokenizer that the checkpoint came with (leave --tokenizer_name out)."
        )
    if config.model_type in CLIP_TYPES:
        _check_end_of_text(tokenizer, config.text_config)
    elif tokenizer.pad_token_id is None:
        raise ValueError(NO_PADDING)


def _check_end_of_text(tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig) -> None:
    """
    Raises a `ValueError` unless the end-of-text token, at which a CLIP reads the text feature, is at the end of every caption. A
    CLIP model of transformers reads it at the first `eos_token_id`. But it takes the value 2 for a configuration from before
    that rule, and reads at the highest id of the sequence instead.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token, at which CLIP reads the text feature. Take a CLIP tokenizer, or leave "
            "--tokenizer_name out."
        )
    if text_config.eos_token_id == 2:
        if tokenizer.eos_token_id != max(tokenizer.get_vocab().values()):
            raise ValueError(
                "The model's `eos_token_id` is 2, which makes CLIP read the text feature at the highest id of a caption, "
                f"but the tokenizer's end-of-text id, {tokenizer.eos_token_id}, is not its highest. Set "
                "`text_config.eos_token_id` in config.json to the tokenizer's id (2 itself cannot serve as one)."
            )
    elif tokenizer.eos_token_id != text_config.eos_token_id:
        raise ValueError(
            f"The model reads the text feature at token {text_config.eos_token_id}, the tokenizer ends a text with "
            f"{tokenizer.eos_token_id}: set `text_config.eos_token_id` in config.json to the tokenizer's."
        )
    _check_ends(tokenizer, min(tokenizer.model_max_length, text_config.max_position_embeddings))


def _check_ends(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises a `ValueError` unless the first end-of-text token of a caption is its last token, in a batch as alone."""
    captions = ["a", "a photo of a cat " * max_length]
    options = {"truncation": True, "max_length": max_length}
    alone = [tokenizer(caption, **options)["input_ids"] for caption in captions]
    if any(tokenizer.eos_token_id not in ids[-1:] or tokenizer.eos_token_id in ids[:-1] for ids in alone):
        raise ValueError(
            f"The tokenizer does not end a text with its end-of-text token, {tokenizer.eos_token}, at which CLIP reads the "
            "text feature: captions that begin alike would get one embedding. Take a CLIP tokenizer, or leave "
            "--tokenizer_name out."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(NO_PADDING)
    batch = tokenizer(captions, padding="longest", **options)["input_ids"]
    if any(padded[: len(ids)] != ids for padded, ids in zip(batch, alone, strict=True)):
        raise ValueError(
            "The tokenizer pads before a text, so that a caption beside a longer one would get another embedding than alone: "
            'set its `padding_side` to "right".'
        )
