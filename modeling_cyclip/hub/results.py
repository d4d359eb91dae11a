"""From the results.json of an evaluation to the forms in which the Hub takes evaluation results."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry

from ..evaluation.report import CENTRED


# The Hub's names of what a protocol measures; what a list lacks keeps its own name.
TASK_TYPES = {
    "zero_shot": "zero-shot-image-classification",
    "shift": "zero-shot-image-classification",
    "fine_coarse": "zero-shot-image-classification",
    "linear_probe": "image-classification",
    "consistency": "image-classification",
    "retrieval": "image-text-retrieval",
    "winoground": "image-text-retrieval",
}
OTHER_TASK_TYPE = "image-feature-extraction"
METRIC_TYPES = {"top1": "accuracy"}


@dataclass(frozen=True)
class Figure:
    r"""
    One number of a results.json.

    Args:
        dataset (`str`):
            Folder or Hub id of the measured set.
        split (`str`, *optional*):
            Its split.
        task (`str`):
            The protocol.
        name (`str`):
            What was measured.
        value, low, high (`float`):
            The figure and its 95 % interval, which single figures do not have.
        items (`int`, *optional*):
            Test items that the figure is a mean over; it is then a share.
        is_main (`bool`):
            Whether it is the figure that the paper reports on this set.
    """

    dataset: str
    split: str | None
    task: str
    name: str
    value: float
    low: float | None
    high: float | None
    items: int | None
    is_main: bool

    @property
    def dataset_name(self) -> str:
        return Path(self.dataset).name

    @property
    def dataset_id(self) -> str | None:
        """The set's name on the Hub, if that is where it is."""
        return self.dataset if _is_on_the_hub(self.dataset) else None

    @property
    def as_text(self) -> str:
        return f"{self.value:.4g}" if self.items is None else f"{100 * self.value:.2f} %"

    @property
    def interval(self) -> str:
        return "" if self.items is None else f"{100 * self.low:.2f} to {100 * self.high:.2f}"


@dataclass(frozen=True)
class Evaluation:
    r"""
    What one results.json says of one checkpoint.

    Args:
        plots (`list[Path]`):
            Plots of it, which lie beside the file.
        header (`dict`):
            How it was measured.
        table (`dict`):
            Figures by protocol, as they stand there but for names of local folders.
        figures (`list[Figure]`):
            The same in a row.
    """

    plots: list[Path]
    header: dict
    table: dict
    figures: list[Figure]

    def files(self, model_id: str) -> dict[str, bytes]:
        """
        For publishing, by path in the repository: the results of this checkpoint alone, without names of local folders,
        and its plots. The folder is named after its content, so that no later run replaces it.
        """
        first = self.figures[0]
        data = (first.dataset_id or first.dataset_name) + (f" [{first.split}]" if first.split else "")
        content = {**self.header, "data": data, "results": {model_id: self.table}}
        results = (json.dumps(content, indent=2) + "\n").encode()
        folder = f"evaluation/{first.dataset_name}-{hashlib.sha256(results).hexdigest()[:8]}"
        return {f"{folder}/results.json": results} | {
            f"{folder}/plots/{plot.name}": plot.read_bytes() for plot in self.plots
        }


def read_results(path: str | Path, names: Iterable[str]) -> Evaluation:
    r"""
    What a results.json says of a checkpoint.

    Args:
        path (`str` or `Path`):
            The file.
        names (`Iterable[str]`):
            What the checkpoint may be called there: its folder or its name on the Hub. Folders are compared by where
            they lead to.

    Returns:
        [`Evaluation`]

    Raises:
        `ValueError`: no such file, or none of its results are of that checkpoint.
    """
    names = list(names)
    try:
        header = json.loads(Path(path).read_text(encoding="utf-8"))
        tables, data = header.pop("results"), header["data"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a results.json of cyclip evaluate: {error!r}") from error
    wanted = {Path(name).resolve() for name in names}
    heading = next((heading for heading in tables if Path(heading).resolve() in wanted), None)
    if heading is None:
        raise ValueError(
            f"{path} has results of {', '.join(tables)}, but none of {', '.join(names)}. If one of them is this model "
            "from before it was moved, name it with --results_of."
        )
    table = {
        task: {_without_folder(name): figure for name, figure in figures.items()}
        for task, figures in tables[heading].items()
    }
    match = re.fullmatch(r"(.*) \[(.*)\]", data)
    dataset, split = match.groups() if match else (data, None)
    main = header.get("metric of the paper") or "top1"
    figures = [
        Figure(
            dataset=dataset,
            split=split,
            task=task,
            name=name,
            value=figure["value"],
            low=figure.get("low"),
            high=figure.get("high"),
            items=figure.get("items"),
            is_main=name == main and task in ("zero_shot", "retrieval", "winoground"),
        )
        for task, figures in table.items()
        for name, figure in figures.items()
    ]
    # An evaluation draws the checkpoint that it measures first.
    plots = sorted(Path(path).parent.glob("plots/*.png")) if heading == next(iter(tables)) else []
    return Evaluation(plots, header, table, figures)


def _is_on_the_hub(dataset: str) -> bool:
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", dataset)
    return is_id is not None and not Path(dataset).exists()


def _without_folder(name: str) -> str:
    """Of a figure named after a set, `"/home/me/sketches [test] top1"`, the folder's last part: `"sketches [test] top1"`."""
    dataset, bracket, rest = name.partition(" [")
    return name if not bracket or _is_on_the_hub(dataset) else f"{Path(dataset).name} [{rest}"


def eval_results(figures: Iterable[Figure]) -> list[EvalResult]:
    """For `model-index` in the metadata of a card: every figure, as it stands in its file."""
    return [
        EvalResult(
            task_type=TASK_TYPES.get(figure.task.removesuffix(CENTRED), OTHER_TASK_TYPE),
            dataset_type=figure.dataset_id or figure.dataset_name,
            dataset_name=figure.dataset_name,
            dataset_split=figure.split,
            metric_type=METRIC_TYPES.get(figure.name, figure.name),
            metric_name=f"{figure.task}: {figure.name}",
            metric_value=figure.value,
        )
        for figure in figures
    ]


def eval_result_entries(figures: Iterable[Figure]) -> dict[str, list[EvalResultEntry]]:
    """For `.eval_results/*.yaml`, which huggingface_hub prefers: the main figure on every set that the Hub has, by file."""
    files: dict[str, list[EvalResultEntry]] = {}
    for figure in figures:
        if figure.is_main and figure.dataset_id is not None:
            notes = f"{figure.name} on the split {figure.split}"
            if figure.items is not None:
                notes += (
                    f", as a share of {figure.items} test items, 95 % interval {figure.low:.4f} to {figure.high:.4f}"
                )
            entry = EvalResultEntry(
                dataset_id=figure.dataset_id,
                task_id=TASK_TYPES.get(figure.task, figure.task),
                value=figure.value,
                notes=notes,
            )
            path = f".eval_results/{figure.dataset_id.replace('/', '--')}.yaml"
            files[path] = merge_entries(files.get(path, []), entry)
    return files


def merge_entries(entries: Iterable[EvalResultEntry], new: EvalResultEntry) -> list[EvalResultEntry]:
    """The new entry in the place of that of the same measurement. Metric and split have no field but the notes."""

    def measured(entry: EvalResultEntry) -> tuple[str, ...]:
        return entry.dataset_id, entry.task_id, (entry.notes or "").partition(", as a share of")[0]

    return [*(entry for entry in entries if measured(entry) != measured(new)), new]
