"""Converts weights of CyCLIP's official code, OpenAI's CLIP or OpenCLIP to a checkpoint folder, and back."""

import gzip
import json
import logging
import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPProcessor, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import cached_file

from .arguments import check_new_folder
from .convert_state_dict import model_from_state_dict, model_to_state_dict
from .modeling_cyclip import WRAPPERS, CyCLIPModel, give_usual_permissions


logger = logging.getLogger(__name__)

# CLIP's vocabulary on the Hub, which OpenCLIP and the official code share, and its size.
CLIP_VOCABULARY, CLIP_VOCABULARY_SIZE = "openai/clip-vit-base-patch32", 49408

# Settings of OpenCLIP that change what a model computes, but none of its shapes, and their values in CLIP.
OPENCLIP_SETTINGS = (
    ("text_cfg", "pool_type", ("argmax", "eos")),
    ("text_cfg", "no_causal_mask", (False,)),
    ("text_cfg", "norm_kwargs", ({}, None)),
    ("text_cfg", "act_kwargs", ({}, None)),
    ("vision_cfg", "pool_type", ("tok",)),
    ("vision_cfg", "norm_kwargs", ({}, None)),
    ("vision_cfg", "act_kwargs", ({}, None)),
)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """
    The weights in a safetensors file, or in a PyTorch pickle that holds a state dict or a training checkpoint, without
    the prefixes of DistributedDataParallel and torch.compile. Raises a `ValueError` for a file that holds anything else.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    if path.suffix == ".safetensors":
        try:
            state_dict = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off, or no safetensors file: {error}") from error
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # the refusal says it all
                state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise  # the file cannot be read at all, and this says why
        except Exception as error:  # what is no pickle fails in any way
            raise ValueError(f"{path} is refused: {_why_refused(error, path)}") from error
        for entry in ("state_dict", "model"):
            if isinstance(state_dict, dict) and isinstance(state_dict.get(entry), dict):
                state_dict = state_dict[entry]

    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{path} holds no state dict but a {type(state_dict).__name__}.")
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} holds no state dict: its keys are not names, but such as {key!r}.")
        if not isinstance(value, Tensor):
            raise ValueError(f"{path} holds no state dict: `{key}` is no tensor but a {type(value).__name__}.")
    return {re.sub(WRAPPERS, "", key): value for key, value in state_dict.items()}


def _why_refused(error: Exception, path: Path) -> str:
    """One line on what `torch.load` found. Its own are a page of advice."""
    if "TorchScript" in str(error):
        return (
            "it is a program (TorchScript), such as OpenAI distributes. Where you trust it, write out its weights alone: "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pt')"
        )
    if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds more than weights, {needed[1]}, which is not run (weights_only=True). Where you have made it, save "
            "its state dict alone."
        )
    # The pickle machine's errors, such as "unsupported operand 60", say nothing more.
    reason = ": " + str(error).partition("\n")[0] if isinstance(error, RuntimeError) else "."
    return f"it is cut off, or no file of weights{reason}"


def load_tokenizer(source: str | Path, vocab_size: int, context_length: int) -> CLIPTokenizer:
    """
    CLIP's tokenizer from a folder, the Hub or a list of merges. Raises a `ValueError` if the vocabulary has another size
    or does not end with the end of the text, and an `OSError` if it cannot be found.
    """
    path = Path(source)
    if path.is_file():
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1:]  # the first line is the version
        # The vocabulary is the bytes, the bytes that end a word, the merged tokens, and the two marks (CLIP,
        # `clip/simple_tokenizer.py`). The file lists more merges than the vocabulary takes.
        merges = [tuple(line.split()) for line in lines[: max(vocab_size - 514, 0)] if line]
        letters = bytes_to_unicode().values()
        tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    else:
        # If transformers finds no file, it makes a tokenizer without vocabulary.
        files = (
            cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            for name in ("tokenizer.json", "vocab.json")
        )
        if not any(files):
            raise OSError(f"{source} holds no vocabulary, neither tokenizer.json nor vocab.json.")
        tokenizer = CLIPTokenizer.from_pretrained(source, model_max_length=context_length)
    if len(tokenizer) != vocab_size or tokenizer.eos_token_id != vocab_size - 1:
        raise ValueError(
            f"The vocabulary {source} has {len(tokenizer)} entries and ends texts with {tokenizer.eos_token_id}; these "
            f"weights have {vocab_size} tokens, the last of which ends a text."
        )
    return tokenizer


def import_checkpoint(source: str | Path, target: str | Path, vocabulary: str | Path | None = None, **kwargs):
    r"""
    Converts a file of weights to a checkpoint folder: configuration, weights, tokenizer and processor.

    Args:
        source (`str` or `Path`):
            A safetensors file, or a PyTorch pickle that holds a state dict, alone or as `state_dict` or `model` in a training
            checkpoint. Pickles are read with `weights_only=True`, so that no code in them is run. If the folder has an
            `open_clip_config.json`, as OpenCLIP publishes it, activation, heads and image normalisation come from it.
        target (`str` or `Path`):
            A new or empty folder.
        vocabulary (`str` or `Path`, *optional*):
            A folder or a name on the Hub with a CLIP tokenizer, or the list of merges in CLIP's repositories
            (`bpe_simple_vocab_16e6.txt.gz`, or the same as plain text), or `"none"` for a checkpoint without tokenizer.
            The default is CLIP's from the Hub. A warning says if it does not fit or cannot be loaded.
        kwargs (*optional*):
            What shapes do not tell: `hidden_act` (defaults to `"quick_gelu"`), `vision_heads` and `text_heads` (default
            to one for every 64 channels). They override `open_clip_config.json`.

    Returns:
        [`CyCLIPModel`]: the model.

    Raises:
        `FileExistsError`: `target` is not empty.
        `ValueError`: the file, its weights or the given vocabulary do not fit.
        `OSError`: the file or the given vocabulary cannot be found.
    """
    source, target = Path(source), Path(target)
    check_new_folder(target)
    settings, normalisation = _openclip_settings(source.parent / "open_clip_config.json")
    state_dict = read_state_dict(source)
    try:
        model = model_from_state_dict(state_dict, **{**settings, **kwargs})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error

    text, size = model.config.text_config, model.config.vision_config.image_size
    tokenizer = None
    if vocabulary == "none":
        absent = "as asked"
    elif vocabulary is not None:
        tokenizer = load_tokenizer(vocabulary, text.vocab_size, text.max_position_embeddings)
    elif text.vocab_size != CLIP_VOCABULARY_SIZE:
        absent = f"since these weights have {text.vocab_size} tokens and CLIP's vocabulary {CLIP_VOCABULARY_SIZE}"
    else:
        try:
            tokenizer = load_tokenizer(CLIP_VOCABULARY, text.vocab_size, text.max_position_embeddings)
        except OSError as error:
            absent = f"since {CLIP_VOCABULARY} cannot be had from the Hub ({error})"

    # Imported only here, since without torchvision transformers logs a line at this import.
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **normalisation
    )
    if tokenizer is not None:
        # transformers 4 looks for the image processor's own file.
        processor.save_pretrained(target)
        processor = CLIPProcessor(image_processor=processor, tokenizer=tokenizer)
    else:
        logger.warning(
            f"{target} gets no tokenizer, {absent}. Give a vocabulary or save a tokenizer there before any text is read: "
            "transformers may put an empty tokenizer in its place without a word."
        )
    processor.save_pretrained(target)
    model.save_pretrained(target)
    return model


def _openclip_settings(path: Path) -> tuple[dict, dict]:
    """
    Arguments for [`infer_config`] and for the image processor, from OpenCLIP's configuration. Raises a `ValueError` if it
    asks for what CLIP has not and weights do not tell.
    """
    if not path.is_file():
        return {}, {}
    content = json.loads(path.read_text(encoding="utf-8"))
    model, images = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for tower, name, known in OPENCLIP_SETTINGS:
        if (value := model.get(tower, {}).get(name, known[0])) not in known:
            raise ValueError(f"These weights are of no CLIP: in {path}, {tower}.{name} is {value!r}.")
    settings = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    if "head_width" in vision:
        width = vision["width"] * (32 if isinstance(vision.get("layers"), list) else 1)
        settings["vision_heads"] = width // vision["head_width"]
    if "heads" in text:
        settings["text_heads"] = text["heads"]
    return settings, {f"image_{key}": images[key] for key in ("mean", "std") if key in images}


def export_checkpoint(source: str | Path, target: str | Path) -> CyCLIPModel:
    r"""
    Converts a checkpoint to a file that OpenCLIP loads, and that [`import_checkpoint`] converts back.

    Args:
        source (`str` or `Path`):
            A folder or a name on the Hub with any checkpoint that [`CyCLIPModel`] opens.
        target (`str` or `Path`):
            A new file. If its name ends with `.safetensors` it is of that format, else a PyTorch pickle.

    Returns:
        [`CyCLIPModel`]: the model.

    Raises:
        `FileExistsError`: `target` exists.
        `OSError`: `source` is not a checkpoint.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists.")
    try:
        model = CyCLIPModel.from_pretrained(source)
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        if Path(source).is_dir():
            raise OSError(f"The folder {source} holds no checkpoint, or one that is cut off: {reason}") from error
        raise OSError(f"{source} is neither a file nor a folder, and no checkpoint on the Hub: {reason}") from error
    (save_file if target.suffix == ".safetensors" else torch.save)(model_to_state_dict(model), target)
    give_usual_permissions(target)
    return model
