"""Tiny models and data, made in the test run: nothing is downloaded."""

import os


# Before torch is imported: many small tests on few cores are faster without a thread pool each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import logging
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import CLIPImageProcessor, CLIPProcessor

from modeling_cyclip import CyCLIPConfig, CyCLIPModel
from modeling_cyclip.data.tokenizer import train_tokenizer


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def log_levels():
    """Programs that run in a test's own process set the level of their logs, which is not for the tests after it."""
    loggers = [logging.getLogger(name) for name in ("modeling_cyclip", "transformers", "transformers.trainer")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of golden figures and real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return SHARED


def coloured_image(colour: str, level: int = 0, size: int = 16) -> PILImage.Image:
    return PILImage.new("RGB", (size, size), tuple(max(0, value - 5 * level) for value in COLOURS[colour]))


@pytest.fixture
def opened_at_once(monkeypatch):
    """Given a module that opens images: a list of how many images are in memory after each that it has opened."""

    def watch(module) -> list[int]:
        opened, numbers = [], []

        def counted(load, *arguments):
            image = load(*arguments)
            opened.append(weakref.ref(image))
            numbers.append(sum(reference() is not None for reference in opened))
            return image

        for name in {"load_image", "load_pixels"} & vars(module).keys():
            monkeypatch.setattr(module, name, partial(counted, getattr(module, name)))
        return numbers

    return watch


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    """32 images of plain colour, each with two captions."""
    rows = [(colour, level) for level in range(8) for colour in COLOURS]
    return Dataset.from_dict(
        {
            "image": [coloured_image(colour, level) for colour, level in rows],
            "caption": [[f"{colour} number {level}", f"a {colour} picture, shade {level}"] for colour, level in rows],
        }
    ).cast_column("image", Image(decode=False))


@pytest.fixture(scope="session")
def processor(pairs) -> CLIPProcessor:
    captions = [caption for captions in pairs["caption"] for caption in captions]
    tokenizer = train_tokenizer(captions, vocab_size=600, max_length=16)
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16), tokenizer)


@pytest.fixture
def config(processor) -> CyCLIPConfig:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = processor.tokenizer
    return CyCLIPConfig(
        vision_config={**tower, "image_size": 16, "patch_size": 8, "projection_dim": 12},
        text_config={
            **tower,
            "projection_dim": 12,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=12,
    )


@pytest.fixture
def model(config) -> CyCLIPModel:
    torch.manual_seed(0)
    return CyCLIPModel(config)
