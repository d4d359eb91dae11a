"""Image, text and class embeddings of a CLIP model."""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPModel, ProcessorMixin

from ..data.images import BrokenImageError, load_image


# Both `{}` and the `{c}` of the CLIP-benchmark files stand for the class name.
PLACEHOLDER = re.compile(r"\{c?\}")

# For data that brings no templates of its own.
GENERAL_TEMPLATES = ["a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of the {}."]


def image_embeddings(
    model: CLIPModel,
    processor: ProcessorMixin,
    images: Sequence,
    batch_size: int = 64,
    *,
    normalize: bool = True,
    num_workers: int = 0,
    state: PartialState | None = None,
    progress: bool = False,
) -> Tensor:
    r"""
    Args:
        model ([`~transformers.CLIPModel`]):
            Any CLIP model, on any device and in any precision. It runs in evaluation mode and is left as it was.
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        images (`Sequence`):
            PIL images, `{"bytes", "path"}` dictionaries or file names, such as `dataset["image"]`.
        batch_size (`int`, *optional*, defaults to 64):
            Images at a time.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether to give unit-norm embeddings or the features as the projection leaves them.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that open and resize images.
        state ([`~accelerate.PartialState`], *optional*):
            Processes that share the work. All of them must call, and all get all the rows; batches are cut as in one
            process, so that the numbers are the same.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `torch.Tensor` of shape `(num_images, dim)`: float32, on the CPU, row by row the images.

    Raises:
        `ValueError`: no images, or one that cannot be opened, with its row.
    """

    def collate(batch: list) -> Tensor | BrokenImageError:
        # An error that left a worker as an exception would arrive wrapped in the worker's traceback.
        for image in batch:
            if isinstance(image, BrokenImageError):
                return image
        return processor.image_processor(batch, return_tensors="pt")["pixel_values"]

    def encode(pixel_values: Tensor | BrokenImageError) -> Tensor:
        if isinstance(pixel_values, BrokenImageError):
            raise ValueError(f"An image cannot be opened: {pixel_values}.")
        pixel_values = pixel_values.to(model.device, model.dtype, non_blocking=True)
        return model.get_image_features(pixel_values=pixel_values).pooler_output

    if len(images) == 0:
        raise ValueError("There are no images to embed.")
    return _encode(model, _OpenedImages(images), collate, encode, batch_size, normalize, num_workers, state, progress)


def text_embeddings(
    model: CLIPModel,
    processor: ProcessorMixin,
    texts: Sequence[str],
    batch_size: int = 256,
    *,
    normalize: bool = True,
    state: PartialState | None = None,
    progress: bool = False,
) -> Tensor:
    r"""
    Args:
        model ([`~transformers.CLIPModel`]):
            Any CLIP model.
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        texts (`Sequence[str]`):
            Texts. What exceeds the model's context is cut. Equal texts are embedded once and get equal embeddings.
        batch_size (`int`, *optional*, defaults to 256):
            Texts at a time.
        normalize, state, progress (*optional*):
            As in [`image_embeddings`].

    Returns:
        `torch.Tensor` of shape `(num_texts, dim)`: float32, on the CPU, row by row the texts.

    Raises:
        `ValueError`: no texts.
    """
    tokenizer = processor.tokenizer
    max_length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    def collate(batch: list[str]) -> dict[str, Tensor]:
        return tokenizer(batch, padding="longest", truncation=True, max_length=max_length, return_tensors="pt")

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        input_ids, attention_mask = (inputs[name].to(model.device) for name in ("input_ids", "attention_mask"))
        return model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    if len(texts) == 0:
        raise ValueError("There are no texts to embed.")
    position = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embeds = _encode(model, list(position), collate, encode, batch_size, normalize, 0, state, progress)
    return embeds[[position[text] for text in texts]]


def class_embeddings(
    model: CLIPModel,
    processor: ProcessorMixin,
    class_names: Sequence[str],
    templates: Sequence[str] = GENERAL_TEMPLATES,
    batch_size: int = 256,
    *,
    state: PartialState | None = None,
    progress: bool = False,
) -> Tensor:
    r"""
    One embedding a class: the mean over prompt templates of unit embeddings, normalised again (CLIP, section 3.1.4).

    Args:
        model ([`~transformers.CLIPModel`]):
            Any CLIP model.
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        class_names (`Sequence[str]`):
            Names as a caption would have them.
        templates (`Sequence[str]`, *optional*):
            Prompts with `{}` or `{c}` where the name goes.
        batch_size, state, progress (*optional*):
            As in [`text_embeddings`].

    Returns:
        `torch.Tensor` of shape `(num_classes, dim)`: unit-norm, float32, on the CPU.

    Raises:
        `ValueError`: no classes, an empty class name, no templates, a template without a place for the name.
    """
    prompts = class_prompts(class_names, templates)
    embeds = text_embeddings(model, processor, prompts, batch_size, state=state, progress=progress)
    return F.normalize(embeds.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, the templates of a class one after another."""
    if not class_names:
        raise ValueError("There are no classes.")
    if not templates:
        raise ValueError("There are no prompt templates.")
    if empty := [index for index, name in enumerate(class_names) if not name.strip()]:
        raise ValueError(f"Class {empty[0]} has an empty name.")
    if wrong := [template for template in templates if not PLACEHOLDER.search(template)]:
        raise ValueError(f"A prompt template needs {{}} where the class name goes: {wrong[0]!r} has none.")
    return [PLACEHOLDER.sub(lambda _, name=name: name, template) for name in class_names for template in templates]


class _OpenedImages(Dataset):
    """Images opened when asked for; in place of a broken one, the error with its row."""

    def __init__(self, images: Sequence):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        try:
            return load_image(self.images[row])
        except BrokenImageError as error:
            return BrokenImageError(f"row {row} ({error.name})", error.reason)


@torch.no_grad()
def _encode(
    model: CLIPModel,
    items: Sequence,
    collate: Callable,
    encode: Callable,
    batch_size: int,
    normalize: bool,
    num_workers: int,
    state: PartialState | None,
    progress: bool,
) -> Tensor:
    process_index, num_processes = (0, 1) if state is None else (state.process_index, state.num_processes)
    batches = torch.arange(len(items)).split(batch_size)[process_index::num_processes]
    loader = DataLoader(
        items,
        batch_sampler=[batch.tolist() for batch in batches],
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    # Every process fills its own rows of a matrix of zeros; the sum over the processes has each row exactly once. On
    # the model's device, so that no batch waits for a copy to the host.
    embeds = torch.zeros(len(items), model.config.projection_dim, device=model.device)
    was_training = model.training
    model.eval()
    try:
        show = progress and process_index == 0
        for rows, batch in zip(batches, tqdm(loader, disable=not show, unit="batch"), strict=True):
            embeds[rows[0] : rows[-1] + 1] = encode(batch)
    finally:
        model.train(was_training)
    if num_processes > 1:
        embeds = reduce(embeds, reduction="sum")
    embeds = embeds.cpu()
    return F.normalize(embeds, dim=-1) if normalize else embeds
