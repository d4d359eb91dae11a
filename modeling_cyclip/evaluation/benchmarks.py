"""Benchmarks by name or by folder, in the layouts they come in."""

import ast
import csv
from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, Image, load_dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..package_files import package_file


REGISTRY = package_file("evaluation/benchmarks.yaml")


@dataclass(frozen=True)
class Benchmark:
    """Where an evaluation set lies, and what is said about it besides its rows."""

    path: str  # a folder or a Hub id
    split: str = "test"  # the split that is measured
    train_split: str | None = None  # the split of reference and training images
    metric: str | None = None  # the figure that the paper reports
    shift_of: str | None = None  # the benchmark that this one is a natural distribution shift of
    baseline_line: list[float] | None = None  # slope and intercept of the accuracy expected here, in percent

    def load(self, split: str) -> Dataset:
        """
        The rows of a split. The layouts are tried in this order:

        - `labels.csv` with the columns `image` and `label`, in the folder or its subfolder `split` (the official code's);
        - WebDataset shards `split/*.tar` (CLIP-benchmark's), in a folder or on the Hub under a name with `wds_`;
        - what `datasets.load_dataset` opens: data files, image folders, Hub datasets.
        """
        try:
            if (folder := self._labels_folder(split)) is not None:
                return _read_labels_csv(folder)
            if (shards := self._shards(split)) is not None:
                return load_dataset("webdataset", data_files={split: shards}, split=split)
            return load_dataset(self.path, split=split)
        except (DatasetGenerationError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} (split {split}) cannot be loaded: {error}") from error

    def class_names(self, split: str) -> list[str] | None:
        """Names from `classnames.txt` (one a line) or the official `classes.py`; `None` where there is neither."""
        if (folder := self._labels_folder(split)) is not None:
            return _read_classes_py(folder)[0]
        return self._lines("classnames.txt")

    def templates(self, split: str) -> list[str] | None:
        """Templates from `zeroshot_classification_templates.txt` or `classes.py`; `None` where there is neither."""
        if (folder := self._labels_folder(split)) is not None:
            return _read_classes_py(folder)[1]
        return self._lines("zeroshot_classification_templates.txt")

    def _labels_folder(self, split: str) -> Path | None:
        folders = (Path(self.path), Path(self.path, split))
        return next((folder for folder in folders if (folder / "labels.csv").is_file()), None)

    def _shards(self, split: str) -> str | None:
        if Path(self.path).is_dir():
            shards = Path(self.path, split, "*.tar")
            return str(shards) if any(shards.parent.glob(shards.name)) else None
        return f"hf://datasets/{self.path}/{split}/*.tar" if self._is_on_hub() else None

    def _is_on_hub(self) -> bool:
        return not Path(self.path).exists() and "/wds_" in self.path

    def _lines(self, name: str) -> list[str] | None:
        path = Path(self.path, name)
        if self._is_on_hub():
            try:
                path = Path(hf_hub_download(self.path, name, repo_type="dataset"))
            except LocalEntryNotFoundError as error:
                raise ValueError(f"{name} of {self.path} cannot be fetched from the Hub: {error}") from error
            except EntryNotFoundError:
                return None
        if not path.is_file():
            return None
        return [line.strip() for line in path.read_text().rstrip("\n").split("\n")]


def open_benchmark(name_or_path: str) -> Benchmark:
    """The benchmark of that name in `benchmarks.yaml`, or else the folder or Hub dataset, which is not yet loaded."""
    registry = yaml.safe_load(REGISTRY.read_text())
    if name_or_path in registry and not Path(name_or_path).exists():
        return Benchmark(**registry[name_or_path])
    return Benchmark(path=name_or_path)


def _read_labels_csv(folder: Path) -> Dataset:
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"image", "label"} <= rows[0].keys():
        raise ValueError("labels.csv must have rows with the columns image and label")
    images = [str((folder / row["image"]).resolve()) for row in rows]
    labels = [int(row["label"]) for row in rows]
    return Dataset.from_dict({"image": images, "label": labels}).cast_column("image", Image())


def _read_classes_py(folder: Path) -> tuple[list[str], list[str]]:
    """Class names and templates from the official `classes.py`. It holds a dictionary, which is parsed and never run."""
    path = next((path for path in (folder / "classes.py", folder.parent / "classes.py") if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has labels.csv, but no classes.py with the class names beside it.")
    try:
        tree = ast.parse(path.read_text(), mode="eval").body
        entries = {key.value: value for key, value in zip(tree.keys, tree.values, strict=True)}
        return ast.literal_eval(entries["classes"]), [_template(node.body) for node in entries["templates"].elts]
    except (SyntaxError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a dictionary with the lists classes and templates: {error!r}") from error


def _template(body: ast.JoinedStr) -> str:
    """The f-string of a template's lambda, with `{}` in place of its argument."""
    return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in body.values)
