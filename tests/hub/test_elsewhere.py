"""Where CLIP checkpoints go besides transformers: a published ViT model in sentence-transformers, torch.export and ONNX."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoProcessor

from modeling_cyclip import CyCLIPModel
from tests.conftest import COLOURS, coloured_image


TEXTS = ["a red picture", "a green picture, shade 3", "blue"]

SEARCH = """
import json
from PIL import Image
from sentence_transformers import SentenceTransformer, util

model = SentenceTransformer("tester/vit")
images = model.encode([Image.open(f"{name}.png") for name in %r])
texts = model.encode(%r)
hits = [[hit["corpus_id"] for hit in found] for found in util.semantic_search(texts, images)]
print(json.dumps([images.tolist(), texts.tolist(), hits]))
"""


@pytest.fixture
def published(hub, publish, run_folder, tmp_path):
    """The folder of what the Hub holds after publishing."""
    done = publish(run_folder, "tester/vit")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "published"
    for path, content in hub.files("tester/vit").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def inputs_of(folder, num_images: int = len(COLOURS), num_texts: int = len(TEXTS)) -> dict[str, torch.Tensor]:
    images = [coloured_image(colour) for colour in list(COLOURS)[:num_images]]
    processor = AutoProcessor.from_pretrained(folder)
    return dict(processor(text=TEXTS[:num_texts], images=images, padding=True, return_tensors="pt"))


def embeds_of(folder, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        outputs = CyCLIPModel.from_pretrained(folder)(**inputs)
    return outputs.image_embeds, outputs.text_embeds


class Embeddings(torch.nn.Module):
    def __init__(self, model: CyCLIPModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, pixel_values):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return outputs.image_embeds, outputs.text_embeds


@pytest.fixture
def program(published) -> torch.export.ExportedProgram:
    """Any number of images and of texts, of any length."""
    texts, length, images = (
        torch.export.Dim(name, max=limit) for name, limit in (("texts", 64), ("length", 16), ("images", 64))
    )
    shapes = {"input_ids": {0: texts, 1: length}, "attention_mask": {0: texts, 1: length}, "pixel_values": {0: images}}
    model = Embeddings(CyCLIPModel.from_pretrained(published)).eval()
    return torch.export.export(model, (), inputs_of(published), dynamic_shapes=shapes)


def test_sentence_transformers(hub, published, tmp_path):
    pytest.importorskip("sentence_transformers")
    for colour in COLOURS:
        coloured_image(colour).save(tmp_path / f"{colour}.png")
    done = subprocess.run(
        [sys.executable, "-c", SEARCH % (list(COLOURS), TEXTS)],
        capture_output=True, text=True, cwd=tmp_path, env=hub.environment(tmp_path / "home of search", token=None),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    images, texts, hits = json.loads(done.stdout.splitlines()[-1])
    expected_images, expected_texts = embeds_of(published, inputs_of(published))
    torch.testing.assert_close(F.normalize(torch.tensor(images), dim=-1), expected_images, atol=1e-4, rtol=0)
    torch.testing.assert_close(F.normalize(torch.tensor(texts), dim=-1), expected_texts, atol=1e-4, rtol=0)
    # One space: cosine search ranks the images as the model's logits do.
    assert hits == (expected_texts @ expected_images.T).argsort(dim=-1, descending=True).tolist()


def test_torch_export(published, program):
    for num_images, num_texts in ((4, 3), (3, 2)):
        inputs = inputs_of(published, num_images, num_texts)
        for exported, expected in zip(program.module()(**inputs), embeds_of(published, inputs), strict=True):
            torch.testing.assert_close(exported, expected, atol=1e-4, rtol=0)


def test_onnx(published, program, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    names = ["image_embeds", "text_embeds"]
    torch.onnx.export(program, output_names=names, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for num_images, num_texts in ((4, 3), (3, 2)):
        inputs = inputs_of(published, num_images, num_texts)
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        for exported, expected in zip(outputs, embeds_of(published, inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(exported), expected, atol=1e-4, rtol=0)
