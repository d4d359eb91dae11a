"""From a checkpoint and data to embeddings, which are kept."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin

from ..data.columns import prompt_template
from ..data.data_collator import decoding_size, normalize, process_image
from ..data.images import BrokenImageError, load_pixels
from ..data.tokenizer import context_length, padding_of, tokenize
from ..dual_encoder import check_processor, embedding_dim, open_dual_encoder, open_processor, pooled
from ..modeling_cyclip import give_usual_permissions
from .arguments import EvaluationArguments
from .content import digest
from .evaluation_set import GENERAL_TEMPLATES, EvaluationSet, without_images
from .progress import progress_bar


logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Counts the ways in which images have become pixel values, so that kept embeddings of an earlier one are not read.
PIXELS_VERSION = 2


@dataclass(frozen=True)
class EmbeddedSet:
    """
    An evaluation set as one checkpoint sees it, on the device that the protocols run on. Embeddings have unit norm;
    features are as the projection leaves them.
    """

    data: EvaluationSet
    image_features: Tensor
    image_embeds: Tensor
    labels: Tensor | None
    class_embeds: Tensor | None
    caption_embeds: Tensor | None  # the captions of an image one after another
    caption_images: Tensor | None  # the image that each caption belongs to
    train: "EmbeddedSet | None"
    shifts: "list[EmbeddedSet]"
    seed: int  # of the linear probe, of k-means and of folds
    fingerprint: str  # of the checkpoint


def embed_all(
    checkpoint: str, data: EvaluationSet, args: EvaluationArguments, state: PartialState
) -> EmbeddedSet | None:
    """A set as one checkpoint sees it. Every process must call this; all but the main one get `None`."""
    model, processor = load_checkpoint(checkpoint, args.dtype, state.device)
    cache_dir = Path(args.output_dir, "embeddings")
    return embed(data, Encoder(model, processor, cache_dir, args.batch_size, args.num_workers, state), args.seed)


def embed(data: EvaluationSet, encoder: "Encoder", seed: int) -> EmbeddedSet | None:
    """All embeddings of a set, its reference images and its shifts; `None` but on the main process."""
    name, prompts, captions = Path(data.name).name, None, None
    image_features, broken = encoder.images(data.dataset, f"images of {name}")
    if data.class_names is not None:
        prompts = encoder.texts(class_prompts(data.class_names, data.templates), f"class prompts of {name}")
    if data.captions is not None:
        captions = encoder.texts([text for texts in data.captions for text in texts], f"captions of {name}")
    train = None if data.train is None else embed(data.train, encoder, seed)
    shifts = [embed(shift, encoder, seed) for shift in data.shifts]
    if not encoder.state.is_main_process:
        return None

    if broken:
        # An example of Winoground is two rows.
        size = 2 if data.is_winoground else 1
        left_out = {row // size for row in broken}
        kept = [row for row in range(len(data.dataset)) if row // size not in left_out]
        if captions is not None:
            captions = captions[torch.isin(_caption_images(data), torch.tensor(kept))]
        image_features, data = image_features[kept], without_images(data, kept, len(broken))
    data = replace(data, train=None if train is None else train.data, shifts=[shift.data for shift in shifts])
    device = encoder.state.device
    class_embeds = caption_embeds = caption_images = None
    if prompts is not None:
        class_embeds = _class_means(F.normalize(prompts, dim=-1), len(data.class_names)).to(device)
    if captions is not None:
        caption_embeds, caption_images = F.normalize(captions, dim=-1).to(device), _caption_images(data).to(device)
    return EmbeddedSet(
        data=data,
        image_features=image_features.to(device),
        image_embeds=F.normalize(image_features, dim=-1).to(device),
        labels=None if data.labels is None else data.labels.to(device),
        class_embeds=class_embeds,
        caption_embeds=caption_embeds,
        caption_images=caption_images,
        train=train,
        shifts=shifts,
        seed=seed,
        fingerprint=encoder.fingerprint,
    )


def _caption_images(data: EvaluationSet) -> Tensor:
    counts = torch.tensor([len(texts) for texts in data.captions])
    return torch.arange(len(counts)).repeat_interleave(counts)


def first_captions(embedded: EmbeddedSet) -> Tensor:
    """Embedding of each image's first caption, `(num_images, dim)`."""
    images = torch.arange(len(embedded.image_embeds), device=embedded.caption_images.device)
    return embedded.caption_embeds[torch.searchsorted(embedded.caption_images, images)]


def load_checkpoint(name_or_path: str, dtype: str, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    r"""
    Opens a checkpoint for evaluation.

    Args:
        name_or_path (`str`):
            Folder or Hub id of a CLIP checkpoint, ours or not, or of another dual encoder of transformers.
        dtype (`str`):
            `"fp32"` or `"bf16"`.
        device (`torch.device`):
            Where the model goes.

    Returns:
        `tuple(PreTrainedModel, ProcessorMixin)`: the model in evaluation mode, and its processor.

    Raises:
        `ValueError`: nothing that can be opened, a checkpoint that is no dual encoder, one that lacks weights, or one whose
        tokenizer or image processor does not fit the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"The precision is one of {', '.join(DTYPES)}, got {dtype}.")
    try:
        model = open_dual_encoder(name_or_path, DTYPES[dtype])
    except OSError as error:
        raise ValueError(f"{name_or_path} is not a checkpoint that transformers can open: {error}") from error
    processor = open_processor(name_or_path)
    model = model.to(device).eval()
    try:
        check_processor(model, processor, context_length(processor.tokenizer, model.config))
    except ValueError as error:
        raise ValueError(f"{name_or_path}: {error}") from error
    return model, processor


@dataclass
class Encoder:
    """
    Embeds datasets and texts with one checkpoint, over all processes, and keeps the results as safetensors. All processes
    call the methods, in the same order.

    A file is named after the fingerprints of the checkpoint (weights, configuration, processor, precision) and of the
    data, and says both in its metadata: what has changed is computed anew, what has not is read. Files hold the features
    before normalisation, in float32.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    cache_dir: Path
    batch_size: int
    num_workers: int
    state: PartialState

    def __post_init__(self):
        self.fingerprint = checkpoint_fingerprint(self.model, self.processor)

    def images(self, dataset: Dataset, about: str = "images") -> tuple[Tensor, list[int]] | tuple[None, None]:
        """
        Features of the column `image` before normalisation, `(num_rows, dim)`, and the rows of images that cannot be
        opened; `None` but on the main process. The progress bar says what it is `about`.
        """
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, "progress": about}
        return self._kept("images", images_fingerprint(dataset), image_features, images=dataset["image"], **options)

    def texts(self, texts: Sequence[str], about: str = "texts") -> Tensor | None:
        """Features of texts before normalisation, `(num_texts, dim)`; `None` but on the main process."""

        def compute(*args, **options) -> tuple[Tensor, list[int]]:
            return text_embeddings(*args, normalize=False, **options), []

        return self._kept("texts", digest(list(texts)), compute, texts=texts, progress=about)[0]

    def _kept(
        self, kind: str, data_fingerprint: str, compute: Callable[..., tuple[Tensor, list[int]]], **options
    ) -> tuple[Tensor, list[int]] | tuple[None, None]:
        path = self.cache_dir / f"{kind}-{self.fingerprint}-{data_fingerprint}.safetensors"
        # The main process decides for all, which need not share a file system.
        if not broadcast_object_list([path.is_file()])[0]:
            features, broken = compute(self.model, self.processor, state=self.state, **options)
            if not features.isfinite().all():
                raise ValueError(
                    f"The model gives embeddings of {kind} that are not finite: it has diverged in training, or its weights "
                    "are damaged."
                )
            if self.state.is_main_process:
                metadata = {"checkpoint": self.fingerprint, "data": data_fingerprint}
                tensors = {"features": features, "broken": torch.tensor(broken, dtype=torch.long)}
                save_whole(tensors, path, metadata)
        if not self.state.is_main_process:
            return None, None
        tensors = load_file(path)
        # Files of earlier versions know of no broken images: those ended the run.
        return tensors["features"], tensors["broken"].tolist() if "broken" in tensors else []


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Saves safetensors, under another name until the file is whole, so that an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial, metadata)
    give_usual_permissions(partial)
    partial.replace(path)


def checkpoint_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """16 hexadecimal digits that change with the weights, the configuration, the processor or the precision."""
    tokenizer = processor.tokenizer
    parts = [
        model.config.to_json_string(),
        processor.image_processor.to_json_string(),
        str(model.dtype),
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items())),
        str(tokenizer.model_max_length),
    ]
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def images_fingerprint(dataset: Dataset) -> str:
    """
    Changes with the undecoded images in the column `image`, and with how this library makes pixels of them. Where rows only
    name files, it changes with their size and time, too: the fingerprint of `datasets` knows nothing of these.
    """
    # Without a format, which would go on naming the column that `flatten` takes apart.
    paths = dataset.with_format(None).flatten()["image.path"]
    states = ((path, os.stat(path)) for path in paths if path is not None and os.path.isfile(path))
    files = [(path, state.st_size, state.st_mtime_ns) for path, state in states]
    return f"{dataset._fingerprint}-{digest([PIXELS_VERSION, *files])}"


def image_embeddings(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence,
    batch_size: int = 64,
    *,
    normalize: bool = True,
    num_workers: int = 0,
    state: PartialState | None = None,
    progress: bool | str = False,
) -> Tensor:
    r"""
    Embeddings of images, in their order.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any CLIP model or other dual encoder, on any device and in any precision. It runs in evaluation mode and is left as it was.
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
            Processes that share the work. All of them must call this, and all get all the rows. Batches are cut as in
            one process, so that the numbers are the same.
        progress (`bool` or `str`, *optional*, defaults to `False`):
            Whether to show a progress bar, or what it says.

    Returns:
        `torch.Tensor` of shape `(num_images, dim)`: float32, on the CPU.

    Raises:
        `ValueError`: no images, or some that cannot be opened, with the row of the first one.
    """
    features, broken = _encode_images(model, processor, images, batch_size, num_workers, state, progress)
    if broken:
        raise ValueError(f"An image cannot be opened: {_first(broken)}.")
    return F.normalize(features, dim=-1) if normalize else features


def image_features(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence,
    batch_size: int = 64,
    *,
    num_workers: int = 0,
    state: PartialState | None = None,
    progress: bool | str = False,
) -> tuple[Tensor, list[int]]:
    r"""
    Features of images as the projection leaves them, and the rows of the images that cannot be opened. A log message
    counts those and names the first one.

    Args:
        model, processor, images, batch_size, num_workers, state, progress:
            As in [`image_embeddings`].

    Returns:
        `tuple(torch.Tensor, list[int])`: float32 of shape `(num_images, dim)`, on the CPU, zero in the rows of broken
        images; these rows.

    Raises:
        `ValueError`: no images, or none that can be opened.
    """
    features, broken = _encode_images(model, processor, images, batch_size, num_workers, state, progress)
    if len(broken) == len(images):
        raise ValueError(f"None of the {len(images)} images can be opened, the first one: {_first(broken)}.")
    if broken and (state is None or state.is_main_process):
        logger.warning(
            f"{len(broken)} of {len(images)} images cannot be opened and are left out, the first one: {_first(broken)}."
        )
    return features, list(broken)


def _encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence,
    batch_size: int,
    num_workers: int,
    state: PartialState | None,
    progress: bool | str,
) -> tuple[Tensor, dict[int, BrokenImageError | None]]:
    if len(images) == 0:
        raise ValueError("There are no images to embed.")
    image_processor = processor.image_processor

    def encode(pixel_values: Tensor) -> Any:
        return model.get_image_features(normalize(image_processor, pixel_values).to(model.dtype))

    batches = _ImageBatches(images, image_processor)
    return _encode(model, encode, batches, len(images), batch_size, num_workers, state, progress)


def _first(broken: dict[int, BrokenImageError | None]) -> str:
    row, error = next(iter(broken.items()))
    # Only the process that met a broken image knows its name.
    return f"row {row}" if error is None else f"row {row} ({error.name}): {error.reason}"


def text_embeddings(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    texts: Sequence[str],
    batch_size: int = 256,
    *,
    normalize: bool = True,
    state: PartialState | None = None,
    progress: bool | str = False,
) -> Tensor:
    r"""
    Embeddings of texts, in their order. Equal texts are embedded once and get equal embeddings.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any CLIP model or other dual encoder.
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        texts (`Sequence[str]`):
            Texts. They are cut to as many tokens as the model and the tokenizer take.
        batch_size (`int`, *optional*, defaults to 256):
            Texts at a time.
        normalize, state, progress (*optional*):
            As in [`image_embeddings`].

    Returns:
        `torch.Tensor` of shape `(num_texts, dim)`: float32, on the CPU.

    Raises:
        `ValueError`: no texts.
    """
    if len(texts) == 0:
        raise ValueError("There are no texts to embed.")
    position = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    max_length = context_length(processor.tokenizer, model.config)
    batches = _TextBatches(list(position), processor.tokenizer, max_length, padding_of(model.config))
    encode = model.get_text_features
    features, _ = _encode(model, encode, batches, len(position), batch_size, 0, state, progress)
    embeds = F.normalize(features, dim=-1) if normalize else features
    return embeds[[position[text] for text in texts]]


def class_embeddings(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    class_names: Sequence[str],
    templates: Sequence[str] = GENERAL_TEMPLATES,
    batch_size: int = 256,
    *,
    state: PartialState | None = None,
    progress: bool | str = False,
) -> Tensor:
    r"""
    One embedding for each class: the mean over prompt templates of unit embeddings, normalised again (CLIP, section
    3.1.4).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any CLIP model or other dual encoder.
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
    return _class_means(embeds, len(class_names))


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template; the prompts of a class follow one another."""
    if not class_names:
        raise ValueError("There are no classes.")
    if not templates:
        raise ValueError("There are no prompt templates.")
    if empty := [index for index, name in enumerate(class_names) if not name.strip()]:
        raise ValueError(f"Class {empty[0]} has an empty name.")
    templates = [prompt_template(text) for text in templates]
    return [text.replace("{}", name) for name in class_names for text in templates]


def _class_means(prompt_embeds: Tensor, num_classes: int) -> Tensor:
    """One embedding for each class, from the unit embeddings of its [`class_prompts`]."""
    return F.normalize(prompt_embeds.unflatten(0, (num_classes, -1)).mean(dim=1), dim=-1)


# What a DataLoader gives to its workers is pickled where processes start by spawn or forkserver (macOS, Windows, Python
# 3.14). A local function cannot be pickled, so these classes stand at module level. Each gives, for some rows, the inputs of
# the model, and the errors of those that have none.
@dataclass(frozen=True)
class _ImageBatches:
    """Images as training has them, in bytes where it can."""

    images: Sequence
    image_processor: Any

    def __getitem__(self, rows: list[int]) -> tuple[dict[str, Tensor], dict[int, BrokenImageError]]:
        pixels, broken = [], {}
        for row in rows:
            try:
                image = load_pixels(self.images[row], decoding_size(self.image_processor))
            except BrokenImageError as error:
                broken[row] = error
                continue
            # One by one, so that no more than one large image is in memory.
            pixels.append(process_image(self.image_processor, image))
        return {"pixel_values": torch.stack(pixels)} if pixels else {}, broken


@dataclass(frozen=True)
class _TextBatches:
    """Tokens of texts."""

    texts: list[str]
    tokenizer: Any
    max_length: int
    padding: str

    def __getitem__(self, rows: list[int]) -> tuple[dict[str, Tensor], dict[int, BrokenImageError]]:
        return tokenize(self.tokenizer, [self.texts[row] for row in rows], self.max_length, self.padding), {}


@torch.no_grad()
def _encode(
    model: PreTrainedModel,
    encode: Callable,
    batches: _ImageBatches | _TextBatches,
    num_rows: int,
    batch_size: int,
    num_workers: int,
    state: PartialState | None,
    progress: bool | str,
) -> tuple[Tensor, dict[int, BrokenImageError | None]]:
    """Features, and the broken rows in their order, each with the error if this process met it."""
    process_index, num_processes = (0, 1) if state is None else (state.process_index, state.num_processes)
    own = torch.arange(num_rows).split(batch_size)[process_index::num_processes]
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=[rows.tolist() for rows in own],
        num_workers=num_workers,
        pin_memory=model.device.type == "cuda",
    )
    # Every process fills its own rows of a matrix of zeros; the sum over the processes has each row exactly once. The
    # matrix is on the model's device, so that no batch waits for a copy to the host.
    embeds = torch.zeros(num_rows, embedding_dim(model.config), device=model.device)
    broken = {}
    was_training = model.training
    model.eval()
    try:
        about, shown = progress if isinstance(progress, str) else None, bool(progress) and process_index == 0
        bar = progress_bar(loader, about, disable=not shown, unit="batch")
        for rows, (batch, errors) in zip(own, bar, strict=True):
            broken |= errors
            if not batch:
                continue
            inputs = {
                name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None, non_blocking=True)
                for name, tensor in batch.items()
            }
            own_rows = slice(rows[0], rows[-1] + 1)
            if errors:
                own_rows = torch.tensor([row for row in rows.tolist() if row not in errors], device=embeds.device)
            embeds[own_rows] = pooled(encode(**inputs)).float()
    finally:
        model.train(was_training)
    is_broken = torch.zeros(num_rows, device=model.device)
    is_broken[list(broken)] = 1
    if num_processes > 1:
        embeds, is_broken = reduce(embeds, reduction="sum"), reduce(is_broken, reduction="sum")
    return embeds.cpu(), {row: broken.get(row) for row in is_broken.nonzero()[:, 0].tolist()}
