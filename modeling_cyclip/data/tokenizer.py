"""A CLIP tokenizer for the captions at hand, and the check that a tokenizer and a model agree."""

import json
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPTokenizer, PreTrainedTokenizerBase


SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
MIN_VOCAB_SIZE = 2 * 256 + len(SPECIAL_TOKENS)


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    r"""
    Trains CLIP's lower-cased byte-level BPE. The vocabulary is laid out like OpenAI's: all 256 bytes, all bytes that end a
    word, the merges, then start and end of text. So every text has tokens, and none is taken for the unknown token, which
    is end of text, where the model reads the text feature. End of text has the highest id, on which both ways of finding
    it in a CLIP model rely.

    Args:
        captions (`Iterable[str]`):
            Texts to train on.
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
    trained = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=vocab_size, show_progress=False)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [character + "</w>" for character in alphabet]
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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: CLIPConfig) -> None:
    """
    Raises a `ValueError` where ids exceed the model's embeddings, or where the model would not find the end-of-text token,
    at which it reads the text feature. A CLIP model of transformers reads it at the first `eos_token_id`. But it takes the
    value 2 for a configuration from before that rule, and reads at the highest id of the sequence instead.
    """
    text_config = config.text_config
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token, at which CLIP reads the text feature. Take a CLIP tokenizer, or leave "
            "--tokenizer_name out."
        )
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeddings for {text_config.vocab_size} only: take the "
            "tokenizer that the checkpoint came with (leave --tokenizer_name out)."
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
