import copy
import os
import shutil
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Image
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_cyclip.data.data_collator import CyCLIPDataCollator
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator
from modeling_cyclip.evaluation import embeddings
from modeling_cyclip.evaluation.embeddings import (
    Encoder,
    checkpoint_fingerprint,
    class_embeddings,
    image_embeddings,
    images_fingerprint,
    load_checkpoint,
    text_embeddings,
)
from tests.conftest import coloured_image


class Processes:
    """One of several processes, as far as sharing out the work goes."""

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes


@torch.no_grad()
def reference_features(model, processor, images):
    """One image at a time, with the model's own method."""
    inputs = (processor(images=image, return_tensors="pt")["pixel_values"] for image in images)
    return torch.cat([model.eval().get_image_features(pixel_values=pixels).pooler_output for pixels in inputs])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_image_embeddings_are_the_models(model, processor, pairs, batch_size):
    features = reference_features(model, processor, [coloured_image(c) for c in ("red", "green", "blue", "yellow")])
    embeds = image_embeddings(model, processor, pairs["image"], batch_size)
    assert embeds.shape == (32, 12)
    assert torch.allclose(embeds[:4], F.normalize(features, dim=-1), atol=1e-5)
    raw = image_embeddings(model, processor, pairs["image"], batch_size, normalize=False)
    assert torch.allclose(raw[:4], features, atol=1e-5)
    assert torch.equal(F.normalize(raw, dim=-1), embeds)


def test_worker_processes_change_nothing(model, processor, pairs):
    alone = image_embeddings(model, processor, pairs["image"], 8)
    assert torch.equal(image_embeddings(model, processor, pairs["image"], 8, num_workers=2), alone)


def test_each_image_is_shrunk_before_the_next_is_opened(model, processor, pairs, opened_at_once):
    opened = opened_at_once(embeddings)
    image_embeddings(model, processor, pairs["image"], 8)
    assert len(opened) == 32 and max(opened) <= 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pixels_are_those_of_training(model, processor, num_workers):
    random = np.random.default_rng(0)
    files = []
    for format, size in (("JPEG", (97, 131)), ("JPEG", (40, 200)), ("JPEG", (20, 20)), ("PNG", (50, 33))):
        buffer = BytesIO()
        PILImage.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8)).save(buffer, format)
        files.append({"bytes": buffer.getvalue(), "path": None})
    # As the Trainer puts them together.
    collator = CyCLIPDataCollator(processor, normalize=False)
    rows = [{"image": file, "caption": ""} for file in files]
    samples = CaptionedSamples(rows, 0, collator.min_image_size, process_image=collator.process_image)
    batch = SampleCollator(collator)(samples.__getitems__(list(range(len(files)))))
    seen = []
    model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    image_embeddings(model, processor, files, num_workers=num_workers)
    assert torch.equal(seen[0], collator.normalized(batch["pixel_values"]))


SPAWNED_WORKER = """
import multiprocessing, sys, torch
from datasets import load_dataset
from PIL import Image
from modeling_cyclip.evaluation.embeddings import image_embeddings, load_checkpoint

multiprocessing.set_start_method("spawn")
model, processor = load_checkpoint(sys.argv[1], "fp32", torch.device("cpu"))
images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "yellow")]
alone, by_worker = (image_embeddings(model, processor, images, 2, num_workers=number) for number in (0, 1))
assert torch.equal(alone, by_worker)
column = load_dataset("parquet", data_files=sys.argv[2], split="train")["image"]
assert image_embeddings(model, processor, column, 2, num_workers=1).shape == (4, 12)
"""


@pytest.mark.slow
def test_workers_need_no_fork(checkpoint, pairs, tmp_path):
    # macOS spawns them, and Python 3.14 starts them from a server: both pickle what a worker gets.
    pairs.select(range(4)).to_parquet(tmp_path / "pairs.parquet")
    command = [sys.executable, "-c", SPAWNED_WORKER, checkpoint, tmp_path / "pairs.parquet"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_processes_share_rows_without_gap_or_repeat(model, processor, pairs, monkeypatch, num_processes):
    images = [row["image"] for row in pairs.select(range(29))]
    alone = image_embeddings(model, processor, images, 4, normalize=False)
    parts = []

    def reduce(tensor, reduction):
        # Beside the embeddings, processes tell one another of broken images.
        parts.extend([tensor] if tensor.dim() == 2 else [])
        return tensor

    monkeypatch.setattr("modeling_cyclip.evaluation.embeddings.reduce", reduce)
    for index in range(num_processes):
        image_embeddings(model, processor, images, 4, normalize=False, state=Processes(index, num_processes))
    assert torch.equal(sum(parts), alone)
    assert (sum((part != 0).any(dim=1).int() for part in parts) == 1).all()


def test_text_embeddings_are_the_models(model, processor):
    texts = ["red", "a blue picture, shade 3", "red", "green " * 50]
    embeds = text_embeddings(model, processor, texts, batch_size=2)
    inputs = processor.tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval().get_text_features(**inputs).pooler_output
    assert torch.allclose(embeds, F.normalize(expected, dim=-1), atol=1e-5)
    assert torch.equal(embeds[0], embeds[2])


def test_class_embeddings_are_normalised_means_of_unit_embeddings(model, processor):
    templates = ["a photo of a {}.", "{c}, painted"]
    embeds = class_embeddings(model, processor, ["red", "blue"], templates)
    for row, name in enumerate(["red", "blue"]):
        prompts = text_embeddings(model, processor, [f"a photo of a {name}.", f"{name}, painted"])
        assert torch.allclose(embeds[row], F.normalize(prompts.mean(dim=0), dim=0), atol=1e-5)


def test_model_in_training_mode_is_left_so_but_embeds_as_in_evaluation(model, processor, pairs):
    model.train()
    model.vision_model.encoder.layers[0].self_attn.dropout = 0.5
    embeds = image_embeddings(model, processor, pairs["image"])
    assert model.training
    assert torch.equal(image_embeddings(model.eval(), processor, pairs["image"]), embeds)
    assert not embeds.requires_grad


def test_bf16_is_close(model, processor, pairs):
    embeds = image_embeddings(model, processor, pairs["image"])
    in_bf16 = image_embeddings(model.to(torch.bfloat16), processor, pairs["image"])
    assert in_bf16.dtype == torch.float32
    assert F.cosine_similarity(embeds, in_bf16).min() > 0.99


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named_by_its_row(model, processor, tmp_path, num_workers):
    (tmp_path / "cat.png").write_text("not an image")
    images = [PILImage.new("RGB", (16, 16)), str(tmp_path / "cat.png")]
    with pytest.raises(ValueError, match=r"^An image cannot be opened: row 1 \(.*cat.png\): UnidentifiedImageError"):
        image_embeddings(model, processor, images, num_workers=num_workers)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{}"], "no classes"),
        (["red", " "], ["{}"], "Class 1 has an empty name"),
        (["red"], [], "no prompt templates"),
        (["red"], ["{}", "a photo"], "'a photo' has none"),
    ],
)
def test_class_prompts_faults(model, processor, names, templates, message):
    with pytest.raises(ValueError, match=message):
        class_embeddings(model, processor, names, templates)


def test_nothing_to_embed(model, processor):
    with pytest.raises(ValueError, match="no images"):
        image_embeddings(model, processor, [])
    with pytest.raises(ValueError, match="no texts"):
        text_embeddings(model, processor, [])


@pytest.fixture
def single_process():
    from accelerate import PartialState

    return PartialState(cpu=True)


def test_encoder_reads_what_it_has_kept(model, processor, pairs, tmp_path, single_process, monkeypatch):
    encoder = Encoder(model, processor, tmp_path, 8, 0, single_process)
    (images, broken), texts = encoder.images(pairs), encoder.texts(["red", "blue"])
    assert broken == []
    assert torch.equal(images, image_embeddings(model, processor, pairs["image"], 8, normalize=False))
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 2
    (tmp_path / "other").touch()
    assert {file.stat().st_mode for file in files} == {(tmp_path / "other").stat().st_mode}
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"checkpoint": encoder.fingerprint, "data": images_fingerprint(pairs)}

    monkeypatch.setattr("modeling_cyclip.evaluation.embeddings.image_features", None)
    monkeypatch.setattr("modeling_cyclip.evaluation.embeddings.text_embeddings", None)
    again = Encoder(model, processor, tmp_path, 8, 0, single_process)
    assert torch.equal(again.images(pairs)[0], images)
    assert torch.equal(again.texts(["red", "blue"]), texts)


def test_encoder_computes_anew_what_has_changed(model, processor, pairs, tmp_path, single_process):
    before = Encoder(model, processor, tmp_path, 8, 0, single_process).texts(["red"])
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    after = Encoder(model, processor, tmp_path, 8, 0, single_process)
    assert torch.allclose(after.texts(["red"]), 2 * before)
    assert not torch.allclose(after.texts(["blue"]), after.texts(["red"]))
    assert len(after.images(pairs.select(range(3)))[0]) == 3
    assert len(after.images(pairs.select(range(4)))[0]) == 4


def test_embeddings_of_other_pixels_are_not_read(model, processor, pairs, tmp_path, single_process, monkeypatch):
    monkeypatch.setattr(embeddings, "PIXELS_VERSION", 1)
    encoder = Encoder(model, processor, tmp_path, 8, 0, single_process)
    encoder.images(pairs)
    [kept] = tmp_path.iterdir()
    monkeypatch.undo()
    encoder.images(pairs)
    assert len({*tmp_path.iterdir()} - {kept}) == 1


def test_encoder_notices_files_with_other_content(model, processor, tmp_path, single_process):
    path = tmp_path / "image.png"
    coloured_image("red").save(path)
    rows = Dataset.from_dict({"image": [str(path)]}).cast_column("image", Image(decode=False))
    encoder = Encoder(model, processor, tmp_path / "kept", 8, 0, single_process)
    before, _ = encoder.images(rows)
    assert torch.equal(encoder.images(rows)[0], before) and len(list((tmp_path / "kept").iterdir())) == 1
    coloured_image("blue", size=17).save(path)
    assert not torch.equal(encoder.images(rows)[0], before)


def test_broken_images_are_left_out_with_their_rows(model, processor, pairs, tmp_path, single_process, caplog):
    (tmp_path / "cat.png").write_text("not an image")
    whole, cat = [row["image"] for row in pairs.select(range(5))], {"path": str(tmp_path / "cat.png"), "bytes": None}
    rows = Dataset.from_dict({"image": [cat, *whole, cat]}).cast_column("image", Image(decode=False))
    # One batch has nothing but a broken image.
    encoder = Encoder(model, processor, tmp_path / "kept", 3, 0, single_process)
    for _ in range(2):
        features, broken = encoder.images(rows)
        assert broken == [0, 6]
        assert torch.allclose(features[1:6], image_embeddings(model, processor, whole, normalize=False), atol=1e-6)
    (message,) = caplog.messages
    assert message.startswith("2 of 7 images cannot be opened and are left out, the first one: row 0 (")
    with pytest.raises(ValueError, match=r"None of the 2 images can be opened, the first one: row 0 .*cat\.png"):
        encoder.images(rows.select([0, 6]))


def test_a_model_that_has_diverged_is_not_measured(model, processor, pairs, tmp_path, single_process):
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="images that are not finite"):
        Encoder(model, processor, tmp_path, 8, 0, single_process).images(pairs)


def test_embeddings_can_be_trained_on(model, processor, pairs):
    embeds = image_embeddings(model, processor, pairs["image"][:2])
    head = torch.nn.Linear(embeds.shape[1], 2)
    head(embeds).sum().backward()
    assert head.weight.grad is not None


def test_fingerprint_knows_weights_processor_and_precision(model, processor):
    prints = {checkpoint_fingerprint(model, processor)}
    processor.image_processor.crop_size = {"height": 8, "width": 8}
    prints.add(checkpoint_fingerprint(model, processor))
    prints.add(checkpoint_fingerprint(model.to(torch.bfloat16), processor))
    processor.tokenizer.model_max_length = 7
    prints.add(checkpoint_fingerprint(model, processor))
    processor.tokenizer.model_max_length = 16
    processor.image_processor.crop_size = {"height": 16, "width": 16}
    assert len(prints) == 4


def test_checkpoint_opens_with_the_auto_classes(checkpoint, model):
    loaded, processor = load_checkpoint(checkpoint, "fp32", torch.device("cpu"))
    assert torch.equal(loaded.text_projection.weight, model.text_projection.weight)
    assert checkpoint_fingerprint(loaded, processor) == checkpoint_fingerprint(
        *load_checkpoint(checkpoint, "fp32", torch.device("cpu"))
    )
    assert load_checkpoint(checkpoint, "bf16", torch.device("cpu"))[0].dtype == torch.bfloat16


def test_checkpoint_faults(tmp_path, model, checkpoint):
    from transformers import BertConfig, BertModel

    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_checkpoint(str(tmp_path), "fp32", cpu)
    with pytest.raises(ValueError, match="fp32, bf16"):
        load_checkpoint(checkpoint, "fp16", cpu)
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="of type bert, which has no get_image_features"):
        load_checkpoint(str(tmp_path / "bert"), "fp32", cpu)
    weights = load_file(f"{checkpoint}/model.safetensors")
    shutil.copytree(checkpoint, tmp_path / "partial")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights .* visual_projection\.weight"):
        load_checkpoint(str(tmp_path / "partial"), "fp32", cpu)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="lacks a tokenizer or an image processor"):
        load_checkpoint(str(tmp_path / "bare"), "fp32", cpu)


def large_images(processor):
    processor.image_processor.size, processor.image_processor.crop_size = {"shortest_edge": 24}, 24


def another_token(processor):
    processor.tokenizer.add_tokens(["<|another|>"])


@pytest.mark.parametrize(
    "change, message",
    [
        (large_images, "makes images of 24 x 24 pixels, the model takes 16 x 16"),
        (another_token, "The tokenizer has 543 tokens, the model embeddings for 542 only"),
    ],
)
def test_processor_that_does_not_fit_the_model_is_refused_when_opened(checkpoint, processor, change, message):
    changed = copy.deepcopy(processor)
    change(changed)
    changed.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(checkpoint, "fp32", torch.device("cpu"))
    assert str(error.value).startswith(checkpoint) and "\n" not in str(error.value)


def test_checkpoint_without_a_vocabulary_is_refused(checkpoint):
    # transformers makes a tokenizer of special tokens alone of what is left.
    os.remove(f"{checkpoint}/tokenizer.json")
    with pytest.raises(ValueError, match=f"^{checkpoint}: The tokenizer has no vocabulary"):
        load_checkpoint(checkpoint, "fp32", torch.device("cpu"))
