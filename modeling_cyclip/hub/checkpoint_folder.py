"""What of an output folder is published, and whether its weights are whole."""

import hashlib
import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..run_record import RUN_RECORD


# A list of what goes, not of what stays: pickles (training_args.bin, optimizer states), checkpoint-* folders and whatever
# else lies there are never published.
PUBLISHED = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.py",  # the modelling files of a ResNet checkpoint
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    RUN_RECORD,
    "trainer_state.json",
    "*_results.json",
    "plots/*.png",
    "runs/**/events.out.tfevents.*",
)


def published_files(output_dir: Path) -> list[Path]:
    """The files to publish, the card aside."""
    return sorted({path for pattern in PUBLISHED for path in output_dir.glob(pattern) if path.is_file()})


def left_out(output_dir: Path) -> list[str]:
    """What stays, folders by their names."""
    published = {path.relative_to(output_dir) for path in published_files(output_dir)}
    folders = {path.parts[0] for path in published}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in output_dir.iterdir()
        if path.name not in folders and path.name != "README.md" and not path.name.startswith(".")
    )


def weight_files(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("*.safetensors"))


def check_checkpoint(output_dir: Path) -> None:
    r"""
    Raises:
        `ValueError`: no checkpoint there, or one whose weights are cut off or lack a file.
    """
    if (output_dir / "adapter_config.json").is_file():
        raise ValueError(
            f"{output_dir} holds an adapter. Merge it into its model first: run_cyclip.py with --resume_from_checkpoint "
            "--merge_lora, on the run that made it."
        )
    if not (output_dir / "config.json").is_file() or not weight_files(output_dir):
        raise ValueError(f"{output_dir} holds no checkpoint: it needs config.json and weights in safetensors.")
    for index in output_dir.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(name for name in named if not (output_dir / name).is_file()):
            raise ValueError(f"{index} names weights that are not there: {', '.join(missing)}.")
    for path in weight_files(output_dir):
        _read_shapes(path)


def count_parameters(output_dir: Path) -> int:
    """Numbers in the weights; what batch norm counts along is no parameter."""
    return sum(
        math.prod(shape)
        for path in weight_files(output_dir)
        for name, shape in _read_shapes(path).items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def _read_shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged: {error}. Save the model again.") from error


def sha256(content: Path | bytes) -> str:
    """What the Hub tells large files apart by."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
