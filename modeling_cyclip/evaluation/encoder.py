"""A checkpoint as an encoder that keeps what it has computed."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoProcessor, CLIPModel, ProcessorMixin

from .embeddings import image_embeddings, text_embeddings


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_checkpoint(name_or_path: str, dtype: str, device: torch.device) -> tuple[CLIPModel, ProcessorMixin]:
    r"""
    Args:
        name_or_path (`str`):
            Folder or Hub id of a CLIP checkpoint, ours or not.
        dtype (`str`):
            `"fp32"` or `"bf16"`.
        device (`torch.device`):
            Where the model goes.

    Returns:
        `tuple(CLIPModel, ProcessorMixin)`: the model in evaluation mode, and its processor.

    Raises:
        `ValueError`: nothing that can be opened, or a checkpoint that is not a CLIP model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"The precision is one of {', '.join(DTYPES)}, got {dtype}.")
    try:
        model, loading = AutoModel.from_pretrained(name_or_path, dtype=DTYPES[dtype], output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name_or_path} is not a checkpoint that transformers can open: {error}") from error
    if not isinstance(model, CLIPModel):
        raise ValueError(
            f"{name_or_path} is a {type(model).__name__}, not a CLIP model with an image and a text tower."
        )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name_or_path} lacks weights of a CLIP model, which would be random: {missing[0]} and {len(missing) - 1} others."
        )
    try:
        processor = AutoProcessor.from_pretrained(name_or_path)
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(f"it has a {type(processor).__name__} only")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name_or_path} lacks a tokenizer or an image processor: {error}") from error
    return model.to(device).eval(), processor


class Encoder:
    r"""
    Embeds datasets and texts with one checkpoint, over all processes, and keeps the results as safetensors.

    A file is named after the fingerprints of the checkpoint (weights, configuration, processor, precision) and of the
    data, and says both in its metadata: what has changed is computed anew, what has not is read. Files hold the features
    before normalisation, in float32.

    Args:
        model ([`~transformers.CLIPModel`]):
            The model.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        cache_dir (`Path`):
            Folder of the files.
        batch_size (`int`):
            Images at a time and process.
        num_workers (`int`):
            Processes that open images, for each process.
        state ([`~accelerate.PartialState`]):
            The processes. All of them call the methods, in the same order.
    """

    def __init__(
        self,
        model: CLIPModel,
        processor: ProcessorMixin,
        cache_dir: Path,
        batch_size: int,
        num_workers: int,
        state: PartialState,
    ):
        self.model = model
        self.processor = processor
        self.cache_dir = cache_dir
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.state = state
        self.fingerprint = checkpoint_fingerprint(model, processor)

    def images(self, dataset: Dataset) -> Tensor | None:
        """Features of the column `image` before normalisation, `(num_rows, dim)`; `None` but on the main process."""

        def compute() -> Tensor:
            return image_embeddings(
                self.model,
                self.processor,
                dataset["image"],
                self.batch_size,
                normalize=False,
                num_workers=self.num_workers,
                state=self.state,
                progress=True,
            )

        return self._kept("images", images_fingerprint(dataset), compute)

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Features of texts before normalisation, `(num_texts, dim)`; `None` but on the main process."""

        def compute() -> Tensor:
            return text_embeddings(
                self.model, self.processor, texts, normalize=False, state=self.state, progress=len(texts) > 10_000
            )

        return self._kept("texts", _digest(json.dumps(texts).encode()), compute)

    def _kept(self, kind: str, data_fingerprint: str, compute: Callable[[], Tensor]) -> Tensor | None:
        path = self.cache_dir / f"{kind}-{self.fingerprint}-{data_fingerprint}.safetensors"
        # The main process decides for all, which need not share a file system.
        if not broadcast_object_list([path.is_file()])[0]:
            features = compute()
            if not features.isfinite().all():
                raise ValueError(
                    f"The model gives embeddings of {kind} that are not finite: it has diverged in training, or its weights "
                    "are damaged."
                )
            if self.state.is_main_process:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                # Under another name until it is whole, so that an interrupted run leaves no half file behind.
                partial = path.with_suffix(f".{os.getpid()}.partial")
                metadata = {"checkpoint": self.fingerprint, "data": data_fingerprint}
                save_file({"features": features}, partial, metadata)
                partial.replace(path)
        return load_file(path)["features"] if self.state.is_main_process else None


def checkpoint_fingerprint(model: CLIPModel, processor: ProcessorMixin) -> str:
    """16 hexadecimal digits that change with the weights, the configuration, the processor or the precision."""
    parts = [model.config.to_json_string(), processor.image_processor.to_json_string(), str(model.dtype)]
    tokenizer = processor.tokenizer
    parts.append(
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    )
    parts.append(str(tokenizer.model_max_length))
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def images_fingerprint(dataset: Dataset) -> str:
    """
    Changes with the undecoded images in the column `image`: also with size and time of the files that rows only name,
    which the fingerprint of `datasets` knows nothing of.
    """
    # Without a format, which would go on naming the column that `flatten` takes apart.
    paths = dataset.with_format(None).flatten()["image.path"]
    states = ((path, os.stat(path)) for path in paths if path is not None and os.path.isfile(path))
    files = [(path, state.st_size, state.st_mtime_ns) for path, state in states]
    return f"{dataset._fingerprint}-{_digest(repr(files).encode())}" if files else dataset._fingerprint


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
