"""The README's Python runs as printed, with a tiny checkpoint and a tiny dataset in place of those of the Hub."""

import re
from pathlib import Path

import datasets
import torch
from torch import nn

from tests.conftest import COLOURS, coloured_image


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CHECKPOINT, DATASET = "openai/clip-vit-base-patch32", "jxie/flickr8k"


def flickr(name: str, split: str) -> datasets.Dataset:
    """One batch of the README's size, with the columns of that dataset that it uses."""
    assert (name, split) == (DATASET, "train")
    rows = [(colour, level) for level in range(64) for colour in COLOURS]
    images = [coloured_image(colour, level % 8) for colour, level in rows]
    return datasets.Dataset.from_dict(
        {"image": images, "caption_0": [f"{colour} number {level}" for colour, level in rows]},
        features=datasets.Features(image=datasets.Image(), caption_0=datasets.Value("string")),
    )


def test_python_examples_run(model, processor, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", flickr)
    # What the example of the loss takes as given.
    encoder, batch = nn.Linear(8, 6), torch.randn(2, 5, 8)
    names = {
        "encode_images": encoder,
        "encode_texts": encoder,
        "images": batch[0],
        "captions": batch[1],
        "log_scale": torch.tensor(2.0, requires_grad=True),
    }
    examples = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    assert CHECKPOINT in examples[0] and DATASET in examples[0]

    for example in examples:
        exec(compile(example.replace(CHECKPOINT, str(checkpoint)), "README.md", "exec"), names)

    assert names["trainer"].state.global_step > 0
    names["loss"].backward()
    assert encoder.weight.grad is not None and names["log_scale"].grad is not None
    answers = names["classify"](coloured_image("red"), candidate_labels=["red", "green"], hypothesis_template="{}")
    assert {answer["label"] for answer in answers} == {"red", "green"}


def test_links_lead_to_files():
    targets = [target for target in re.findall(r"\]\(([^)#]+)", README) if "://" not in target]
    assert "docs/troubleshooting.md" in targets
    assert [target for target in targets if not (Path(__file__).parents[2] / target).exists()] == []
