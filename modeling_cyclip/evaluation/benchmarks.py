"""Benchmarks by name or by folder, in the layouts they come in."""

import ast
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from datasets import Dataset, Image
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..arguments import check_name
from ..data.captions import open_table
from ..data.columns import prompt_template
from ..package_files import package_file


REGISTRY = package_file("evaluation/benchmarks.yaml")

# One split goes by these names. `datasets` finds the folder `val` and calls it `validation`.
VALIDATION = ("validation", "val", "valid")


@dataclass(frozen=True)
class Benchmark:
    """Where an evaluation set lies, and what is said about it besides its rows."""

    path: str  # a folder or a Hub id
    split: str = "test"  # the split that is measured
    train_split: str | None = None  # the split of reference and training images
    metric: str | None = None  # the figure that the paper reports
    shift_of: str | None = None  # the benchmark that this one is a natural distribution shift of
    baseline_line: list[float] | None = None  # slope and intercept of the accuracy expected here, in percent

    def load(self, split: str) -> tuple[Dataset, Path | None]:
        """
        The rows of a split, and the folder that paths in them are relative to. The layouts are tried in this order:

        - `labels.csv` with the columns `image` and `label`, in the folder or its subfolder `split` (the official code's);
        - WebDataset shards `split/*.tar` (CLIP-benchmark's), in a folder or on the Hub under a name with `wds_`;
        - what training opens, by [`~modeling_cyclip.data.captions.open_table`]: tables, folders, shards, Hub datasets.
        """
        names = VALIDATION if split in VALIDATION else (split,)
        errors = []
        for name in sorted(names, key=lambda name: name != split):
            try:
                return self._load(name)
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def _load(self, split: str) -> tuple[Dataset, Path | None]:
        folder, shards = self._labels_folder(split), self._shards(split)
        if folder is None and shards is None:
            return open_table(self.path, split)
        try:
            if folder is not None:
                return _read_labels_csv(folder), folder
            builder = _Shards(dataset_name="benchmark_shards", data_files={split: shards})
            builder.download_and_prepare()
            return builder.as_dataset(split), None
        except (DatasetGenerationError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} (split {split}) cannot be loaded: {error}") from error

    def commit(self, dataset: Dataset) -> str | None:
        """The commit on the Hub that the rows of a split were read from; `None` for local data."""
        if self._is_on_hub():
            return self._hub_commit
        # `datasets` keeps what it reads from the Hub in a folder that is named after the commit.
        files = dataset.cache_files
        folder = Path(files[0]["filename"]).parent.name if files else ""
        return folder if re.fullmatch("[0-9a-f]{40}", folder) else None

    @property
    def is_single(self) -> bool:
        """Whether it is one table or some shards, which have no splits."""
        return Path(self.path).expanduser().is_file() or self.path.lower().endswith(".tar")

    def class_names(self, split: str) -> list[str] | None:
        """Names from `classnames.txt` (one a line) or the official `classes.py`; `None` where there is neither."""
        if (folder := self._labels_folder(split)) is not None:
            return _read_classes_py(folder)[0]
        path = self._file("classnames.txt")
        return None if path is None else read_class_names(path)

    def templates(self, split: str) -> list[str] | None:
        """Templates from `zeroshot_classification_templates.txt` or `classes.py`; `None` where there is neither."""
        if (folder := self._labels_folder(split)) is not None:
            return _read_classes_py(folder)[1]
        path = self._file("zeroshot_classification_templates.txt")
        return None if path is None else read_templates(path)

    def _labels_folder(self, split: str) -> Path | None:
        folders = (Path(self.path), Path(self.path, split))
        return next((folder for folder in folders if (folder / "labels.csv").is_file()), None)

    def _shards(self, split: str) -> str | None:
        if Path(self.path).is_dir():
            shards = Path(self.path, split, "*.tar")
            return str(shards) if any(shards.parent.glob(shards.name)) else None
        return f"hf://datasets/{self.path}@{self._hub_commit}/{split}/*.tar" if self._is_on_hub() else None

    def _is_on_hub(self) -> bool:
        return not Path(self.path).exists() and "/wds_" in self.path

    @cached_property
    def _hub_commit(self) -> str:
        """The commit that all files are read from, whatever is uploaded meanwhile."""
        try:
            return HfApi().dataset_info(self.path).sha
        except Exception as error:  # huggingface_hub and its HTTP client share no base class
            raise ValueError(f"{self.path} cannot be fetched from the Hub: {error}") from error

    def _file(self, name: str) -> Path | None:
        # The names of a table's classes lie beside it.
        path = Path(self.path).expanduser()
        path = (path.parent if self.is_single else path) / name
        if self._is_on_hub():
            try:
                path = Path(hf_hub_download(self.path, name, repo_type="dataset", revision=self._hub_commit))
            except LocalEntryNotFoundError as error:
                raise ValueError(f"{name} of {self.path} cannot be fetched from the Hub: {error}") from error
            except EntryNotFoundError:
                return None
        return path if path.is_file() else None


def open_benchmark(name_or_path: str) -> Benchmark:
    """The benchmark of that name in `benchmarks.yaml`, or else the folder or Hub dataset, which is not yet loaded."""
    registry = yaml.safe_load(REGISTRY.read_text())
    if name_or_path in registry and not Path(name_or_path).exists():
        return Benchmark(**registry[name_or_path])
    check_name(name_or_path, name_or_path)
    return Benchmark(path=name_or_path)


def read_class_names(path: Path) -> list[str]:
    """The names in a file, one a line: line n has the name of label n - 1, so that no line may be empty."""
    names = [" ".join(line.split()) for line in _read_text(path).rstrip().split("\n")]
    if "" in names:
        raise ValueError(
            f"{path}: line {names.index('') + 1} is empty. The number of a line says which label it names; remove the line, "
            "or write the name."
        )
    return names


def read_templates(path: Path) -> list[str]:
    """
    The prompt templates in a file, one a line, with `{}` where the class name goes. Lines may also be Python's strings and
    lambdas, as lists of templates are often passed around. They are parsed and never run.
    """
    templates = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                templates.append(prompt_template(_unquoted(line.strip())))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not templates:
        raise ValueError(f"{path} holds no templates: write one a line, with {{}} where the class name goes.")
    return templates


def _unquoted(line: str) -> str:
    """What a line of Python stands for, if it is a string or a lambda; any other line as it is."""
    code = line.removesuffix(",")
    if not re.match(r"""lambda\b|[rRuU]?(['"])((?!\1)[^\\]|\\.)*\1$""", code):
        return line
    try:
        tree = ast.parse(code, mode="eval").body
        return _lambda_template(tree) if isinstance(tree, ast.Lambda) else ast.literal_eval(tree)
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(f"{line!r} is Python that is not understood; write the prompt itself, with {{}}.") from error


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is in UTF-16; save it as UTF-8.")
    try:
        return "\n".join(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error


class _Shards(WebDataset):
    """WebDataset shards whose columns are the members' endings in lower case, in whatever case each of them is."""

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path: str, tar_iterator: Iterable) -> Iterator[dict]:
        def in_lower_case() -> Iterator[tuple]:
            for name, file in tar_iterator:
                key, ending = base_plus_ext(name)
                yield name if key is None else f"{key}.{ending.lower()}", file

        yield from super()._get_pipeline_from_tar(tar_path, in_lower_case())


def _read_labels_csv(folder: Path) -> Dataset:
    table = csv.DictReader(_read_text(folder / "labels.csv").split("\n"), skipinitialspace=True)
    table.fieldnames = [name.strip() for name in table.fieldnames or ()]
    rows = list(table)
    if not rows or not {"image", "label"} <= rows[0].keys():
        raise ValueError("labels.csv must have rows with the columns image and label")
    labels = [(row["label"] or "").strip() for row in rows]
    if not all(label.isdecimal() for label in labels):
        labels = _numbers_of(labels, _read_classes_py(folder)[0])
    images = [str((folder / (row["image"] or "").strip()).resolve()) for row in rows]
    return Dataset.from_dict({"image": images, "label": [int(label) for label in labels]}).cast_column(
        "image", Image()
    )


def _numbers_of(labels: list[str], names: list[str]) -> list[int]:
    """Labels that are names, by their place among the classes."""
    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in numbers:
            raise ValueError(
                f"labels.csv, row {row}: {label!r} is neither a number nor one of the {len(names)} names in classes.py"
            )
    return [numbers[label] for label in labels]


def _read_classes_py(folder: Path) -> tuple[list[str], list[str]]:
    """Class names and templates from the official `classes.py`. It holds a dictionary, which is parsed and never run."""
    path = next((path for path in (folder / "classes.py", folder.parent / "classes.py") if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has labels.csv, but no classes.py with the class names beside it.")
    text = _read_text(path)
    try:
        tree = ast.parse(text, mode="eval").body
        entries = {key.value: value for key, value in zip(tree.keys, tree.values, strict=True)}
        return ast.literal_eval(entries["classes"]), [_lambda_template(one) for one in entries["templates"].elts]
    except (SyntaxError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a dictionary with the lists classes and templates: {error!r}") from error


def _lambda_template(function: ast.Lambda) -> str:
    """The f-string of a template's lambda, with `{}` in place of its argument."""
    argument = function.args.args[0].arg
    parts = []
    for part in function.body.values:
        if not isinstance(part, ast.Constant) and part.value.id != argument:
            raise ValueError(f"{part.value.id} is not the argument {argument}")
        parts.append(part.value if isinstance(part, ast.Constant) else "{}")
    return "".join(parts)
