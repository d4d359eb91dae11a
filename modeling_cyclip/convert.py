"""`cyclip-convert`: weights of CyCLIP's official code, OpenAI's CLIP or OpenCLIP to a checkpoint folder, and back."""

import gzip
import json
import logging
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPProcessor, CLIPTokenizer
from transformers.utils import cached_file

from .convert_state_dict import model_from_state_dict, model_to_state_dict
from .modeling_cyclip import CyCLIPModel


logger = logging.getLogger(__name__)

# Where CLIP's vocabulary, which OpenCLIP and the official code share, is on the Hub, and its size.
CLIP_VOCABULARY, CLIP_VOCABULARY_SIZE = "openai/clip-vit-base-patch32", 49408


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    r"""
    The weights in a file, under their names in an unwrapped model.

    Args:
        path (`str` or `Path`):
            A safetensors file, or a pickle of PyTorch that holds a state dict, alone or as `state_dict` in a training
            checkpoint. Pickles are read with `weights_only=True`: what they hold besides tensors and plain values is
            never run.

    Returns:
        `dict[str, torch.Tensor]`: without the prefix of DistributedDataParallel.

    Raises:
        `ValueError`: a file that holds more than weights, or no state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            state_dict = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    else:
        try:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            hint = ""
            if "TorchScript" in str(error):
                hint = (
                    "\nOpenAI distributes programs of this kind. Where you trust yours, write out its weights alone: "
                    f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pt')"
                )
            raise ValueError(
                f"{path} is refused, since it cannot be read as weights alone (weights_only=True): {error}{hint}"
            ) from error
        if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
            state_dict = state_dict["state_dict"]

    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{path} holds no state dict but a {type(state_dict).__name__}.")
    strangers = [str(key) for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(f"{path} holds no state dict: these are not tensors: {', '.join(strangers)}.")
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict)


def load_tokenizer(source: str | Path, vocab_size: int, context_length: int) -> CLIPTokenizer:
    r"""
    CLIP's tokenizer.

    Args:
        source (`str` or `Path`):
            A folder or a name on the Hub with a CLIP tokenizer, or the list of merges that CLIP's repositories hold
            (`bpe_simple_vocab_16e6.txt.gz`; plain text will do).
        vocab_size (`int`):
            Rows of the model's token embedding.
        context_length (`int`):
            Tokens that the model takes.

    Returns:
        [`~transformers.CLIPTokenizer`]

    Raises:
        `ValueError`: a vocabulary of another size, or one that does not end with the end of the text.
        `OSError`: nothing there, or the Hub cannot be reached.
    """
    path = Path(source)
    if path.is_file():
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1:]  # the first names the version
        # The bytes, the bytes that end a word, what merging makes of them, and the two marks (CLIP,
        # `clip/simple_tokenizer.py`). The list is longer than the vocabulary.
        merges = [tuple(line.split()) for line in lines[: max(vocab_size - 514, 0)] if line]
        letters = _byte_letters()
        tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)
    else:
        # Where it finds no file, transformers makes a tokenizer without vocabulary.
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


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, in the order of CLIP's vocabulary: GPT-2's, printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def import_checkpoint(source: str | Path, target: str | Path, vocabulary: str | Path | None = None, **kwargs):
    r"""
    Converts a file of weights to a checkpoint folder: configuration, weights, tokenizer and processor.

    Args:
        source (`str` or `Path`):
            What [`read_state_dict`] reads. An `open_clip_config.json` beside it, as OpenCLIP publishes it, says
            activation, heads and the normalisation of images.
        target (`str` or `Path`):
            A folder, new or empty.
        vocabulary (`str` or `Path`, *optional*):
            What [`load_tokenizer`] takes, or `"none"` for a folder without tokenizer. By default CLIP's from the Hub,
            left out with a warning where it does not fit or cannot be had.
        kwargs (*optional*):
            What [`infer_config`] takes, over what `open_clip_config.json` says.

    Returns:
        [`CyCLIPModel`]: the model.

    Raises:
        `FileExistsError`: a target that is not empty.
        `ValueError`: a file, weights or a given vocabulary that do not fit.
        `OSError`: no file, or a given vocabulary that cannot be had.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder.")
    settings, normalisation = _openclip_settings(source.parent / "open_clip_config.json")
    model = model_from_state_dict(read_state_dict(source), **{**settings, **kwargs})

    text, size = model.config.text_config, model.config.vision_config.image_size
    tokenizer, absent = None, None
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

    # As in build_model.py: transformers has something to say of this import.
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **normalisation
    )
    if tokenizer is not None:
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
    """What OpenCLIP's configuration says and shapes do not: for [`infer_config`], and for the image processor."""
    if not path.is_file():
        return {}, {}
    content = json.loads(path.read_text(encoding="utf-8"))
    model, images = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
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
            A folder or a name on the Hub, of any checkpoint that [`CyCLIPModel`] opens.
        target (`str` or `Path`):
            A new file: safetensors if its name ends so, else a pickle of PyTorch.

    Returns:
        [`CyCLIPModel`]: the model.

    Raises:
        `FileExistsError`: a target that exists.
        `OSError`: no checkpoint there.
    """
    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists.")
    try:
        model = CyCLIPModel.from_pretrained(source)
    except OSError as error:
        raise OSError(f"{source} is neither a file nor a checkpoint, in a folder or on the Hub: {error}") from error
    (save_file if target.suffix == ".safetensors" else torch.save)(model_to_state_dict(model), target)
    return model
