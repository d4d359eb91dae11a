"""Embeds texts, images and the folder of images that the page compares with, by one checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from modeling_cyclip.data.images import BrokenImageError, class_of, list_images, load_image


# A picture of more is not decoded: this many take 200 megabytes.
MAX_PIXELS = 50_000_000


def open_visitors_image(path: str) -> Image.Image:
    """Opens an image that somebody has sent. Raises a `BrokenImageError` for one that is broken or too large to decode."""
    try:
        with Image.open(path) as image:  # reads only the head of the file
            width, height = image.size
    except Exception:  # what is wrong with it, load_image says
        width = height = 0
    if width * height > MAX_PIXELS:
        reason = f"it has {width:,} × {height:,} pixels, and this page opens {MAX_PIXELS // 10**6} million at most"
        raise BrokenImageError(path, reason)
    return load_image(path)


class Checkpoint:
    """
    Any model that transformers opens and that embeds images and texts in one space, such as CLIP and SigLIP, by its name on
    the Hub or its folder. It runs on the GPU if there is one. A checkpoint with a ResNet tower brings code, which
    `trust_remote_code` allows to run.
    """

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = False):
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        # Of a folder, visitors need not know where it lies; of a model on the Hub, they know whose page this is.
        self.name = Path(name).resolve().name
        self.model = AutoModel.from_pretrained(name, **options).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(name, **options)
        self.logit_scale = self.model.logit_scale.exp().item()
        bias = getattr(self.model, "logit_bias", None)  # where the loss was SigLIP's
        self.logit_bias = None if bias is None else bias.item()
        text_config, tokenizer = self.model.config.text_config, self.processor.tokenizer
        # RoBERTa has two positions more than it reads tokens. The tokenizer of a trained model knows how many these are.
        self.max_length = min(text_config.max_position_embeddings, tokenizer.model_max_length)
        # SigLIP reads a text at its last position, padding or not.
        self.padding = "max_length" if "siglip" in text_config.model_type else "longest"

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit-norm embeddings `(num_images, dim)`, on the CPU."""
        inputs = self.processor.image_processor(images, return_tensors="pt").to(self.model.device, self.model.dtype)
        return F.normalize(self.model.get_image_features(**inputs).pooler_output.float(), dim=-1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `(num_texts, dim)`, on the CPU. Texts are cut to the length that the model reads."""
        inputs = self.processor.tokenizer(
            texts, padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        # SigLIP's tokenizer gives no mask, and others give types of tokens, which no model needs for one text.
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return F.normalize(self.model.get_text_features(**inputs).pooler_output.float(), dim=-1).cpu()


@dataclass(frozen=True)
class ReferenceImages:
    """The images of a folder with one subfolder for each class."""

    paths: list[Path]
    classes: list[str]  # of each path
    embeds: Tensor  # of each path, unit norm
    broken: list[str]  # files that could not be opened

    @property
    def class_names(self) -> list[str]:
        return sorted(set(self.classes))


def embed_folder(folder: Path, checkpoint: Checkpoint, batch_size: int = 32) -> ReferenceImages:
    """Embeds all images in the subfolders of `folder`, which need not exist."""
    paths, rows, batch, broken = [], [], [], []
    files = list_images(folder)
    for number, path in enumerate(files, start=1):
        try:
            batch.append(load_image(path))
            paths.append(path)
        except BrokenImageError:
            broken.append(path.relative_to(folder).as_posix())
        if batch and (len(batch) == batch_size or number == len(files)):
            rows.append(checkpoint.embed_images(batch))
            batch = []
    classes = [class_of(path, folder) for path in paths]
    return ReferenceImages(paths, classes, torch.cat(rows) if rows else torch.empty(0, 0), broken)
