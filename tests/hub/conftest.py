"""Folders as a training leaves them, results as evaluation writes them, and a Hub to publish to."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor

from modeling_cyclip import CyCLIPConfig, CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel
from tests.hub.loopback import Hub, running_hub


ROOT = Path(__file__).parents[2]

LOGS = [
    {"step": step, "epoch": step / 4, "loss": 3.5 / step, "contrastive_loss": 3.25 / step, "logit_scale": 14.3,
     "inmodal_cyclic_loss": 0.7 / step, "crossmodal_cyclic_loss": 0.3 / step, "image_to_text_recall@1": 0.125 * step,
     "text_to_image_recall@1": 0.0625 * step}
    for step in (2, 4, 6)
]  # fmt: skip
STATE = {"global_step": 6, "epoch": 1.5, "log_history": [*LOGS, {"step": 6, "train_runtime": 12.5, "train_loss": 1.0}]}
RUN = {
    "model": {"model_size": "nano", "license": "mit"},
    "data": {"train_file": "pairs.csv"},
    "training": {"learning_rate": 0.001, "per_device_train_batch_size": 8, "cyclic_warmup_ratio": 0.5},
    "base_model": None,
    "dataset": None,
    "training_pairs": 1234,
    "processes": 2,
    "hardware": "NVIDIA H100 80GB HBM3",
    "environment": {"Python": "3.11.7", "torch": "2.13.0", "transformers": "5.24.0"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
}


def write_results(path: Path, heading: str, value: float, data: str = "clip-benchmark/wds_tiny [test]") -> Path:
    figures = {"top1": {"value": value, "low": value - 0.0625, "high": value + 0.0625, "items": 1024}}
    tables = {
        heading: {"zero_shot": figures, "geometry": {"modality_gap": {"value": 0.515625}}},
        "other/model": {"zero_shot": {"top1": {"value": 0.875}}},
    }
    header = {"data": data, "metric of the paper": "top1", "precision": "float32", "seed": 0, "seconds": 3.0}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header, "results": tables}))
    return path


@pytest.fixture
def comparison(tmp_path) -> Path:
    """The output folder of a comparison, as far as a card reads it."""
    differs = {
        "to": "CLIP",
        "value": -0.125,
        "items_interval": [-0.25, -0.0625],
        "seeds_interval": None,
        "verdict": "lower",
    }
    top1 = {
        "CLIP": {"seeds": [0.75], "mean": 0.75, "std": None, "items": 64},
        "CyCLIP": {"seeds": [0.625], "mean": 0.625, "std": None, "items": 64, "difference": differs},
    }
    told = {"command": "python run_comparison.py", "evaluations": {"colours": {"dataset": "/home/me/colours"}}}
    found = {"arms": {"CLIP": {}, "CyCLIP": {}}, "seeds": [0], "notes": [], "cost": {}, "training_pairs": 1234}
    found["health"] = {"CyCLIP": ["CyCLIP, seed 0: All images have nearly the same embedding."]}
    where = {name: RUN[name] for name in ("hardware", "environment", "commit")}
    folder = tmp_path / "comparison"
    folder.mkdir()
    results = {"colours": {"zero_shot": {"top1": top1}}}
    (folder / "results.json").write_text(json.dumps({**told, **found, **where, "results": results}))
    return folder


@pytest.fixture
def results(run_folder, tmp_path) -> Path:
    path = write_results(tmp_path / "results" / "results.json", str(run_folder), 0.625)
    (path.parent / "plots").mkdir()
    (path.parent / "plots" / "confusion.png").write_bytes(b"a picture")
    return path


@pytest.fixture
def run_folder(config: CyCLIPConfig, processor: CLIPProcessor, tmp_path) -> Path:
    """What run_cyclip.py leaves, with what must never be published beside it."""
    torch.manual_seed(0)
    return make_run_folder(tmp_path / "vit", CyCLIPModel(config), processor)


def make_run_folder(folder: Path, model: CyCLIPModel, processor: CLIPProcessor) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    (folder / "eval_results.json").write_text(json.dumps({"eval_loss": 1.3125, "eval_runtime": 2.0}))
    (folder / "run.json").write_text(json.dumps(RUN))
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-6/model.safetensors", "embeddings/test.safetensors",
                 "runs/today/events.out.tfevents.1.host", "runs/today/notes.txt"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0 stands for the real thing")
    return folder


@pytest.fixture
def resnet_folder(config: CyCLIPConfig, processor: CLIPProcessor, tmp_path) -> Path:
    torch.manual_seed(1)
    vision = {"depths": [1, 1, 1, 1], "embedding_size": 4, "num_attention_heads": 2, "image_size": 32}
    text = config.text_config.to_dict()
    model = CyCLIPResNetModel(CyCLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=12))
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    return make_run_folder(tmp_path / "resnet", model, CLIPProcessor(images, processor.tokenizer))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def publish(hub: Hub, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """`model_cards/publish.py` in a process of its own, which is how huggingface_hub learns the Hub's address."""

    def run(*arguments, token: str | None = "hf_loopback") -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "model_cards" / "publish.py", *arguments]
        environment = hub.environment(tmp_path / "home", token)
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)

    return run
