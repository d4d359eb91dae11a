"""Turns the results.json of an evaluation into the forms in which the Hub takes evaluation results."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry

from ..evaluation.report import CENTRED, SHAPING, command_line


# What the Hub calls the tasks that the protocols measure.
TASK_TYPES = {
    "zero_shot": "zero-shot-image-classification",
    "shift": "zero-shot-image-classification",
    "fine_coarse": "zero-shot-image-classification",
    "linear_probe": "image-classification",
    "consistency": "image-classification",
    "retrieval": "image-text-retrieval",
    "winoground": "image-text-retrieval",
}
# The arguments of an evaluation that may name local files.
FILES = {"dataset", "shift_datasets", "templates", "baseline_points"}
# The protocols with a figure that the paper reports.
MAIN_TASKS = ("zero_shot", "retrieval", "winoground")


@dataclass(frozen=True)
class Figure:
    """One number of a results.json."""

    dataset_name: str  # with the setting, where that is not the default: the label of the measurement
    dataset_id: str | None  # the set's name on the Hub, if it is there
    split: str | None
    task: str  # the protocol
    name: str
    is_main: bool  # whether the paper reports this figure on such a set
    value: float
    chance: float | None = None  # what guessing would reach, where that is known
    # A mean over test items has their number and a 95 % interval, and is a share. Other figures have neither.
    low: float | None = None
    high: float | None = None
    items: int | None = None
    left_out: int = 0  # images that could not be opened
    shared: float = 0.0  # share of the test images that are reference images, too
    # What was measured and how, as far as it differs from the defaults and shapes this figure.
    setting: str | None = None
    revision: str | None = None  # the commit of a set on the Hub, or a digest of the images of a local one
    dataset: str | None = None  # the plain name of the set


@dataclass(frozen=True)
class Evaluation:
    """What one results.json says of one checkpoint. No names of local folders are left in it."""

    plots: list[Path]
    header: dict  # how it was measured
    table: dict  # figures by protocol, as in the file
    figures: list[Figure]  # the same as a list

    def files(self, model_id: str) -> dict[str, bytes]:
        """
        The files to publish, by path in the repository: the results of this checkpoint alone, and its plots. The folder
        is named after its content, so that no later run replaces it.
        """
        header = dict(self.header)
        if "arguments" in header:
            header["arguments"] = {**header["arguments"], "model_name_or_path": model_id}
            header["command"] = command_line(header["arguments"])
        content = {**header, "results": {model_id: self.table}}
        results = (json.dumps(content, indent=2) + "\n").encode()
        folder = f"evaluation/{self.figures[0].dataset}-{hashlib.sha256(results).hexdigest()[:8]}"
        return {f"{folder}/results.json": results} | {
            f"{folder}/plots/{plot.name}": plot.read_bytes() for plot in self.plots
        }


def read_results(path: str | Path, names: Iterable[str]) -> Evaluation:
    r"""
    Reads what a results.json says of a checkpoint.

    Args:
        path (`str` or `Path`):
            The file.
        names (`Iterable[str]`):
            What the file may call the checkpoint: its folder, by whatever path, or its name on the Hub.

    Returns:
        [`Evaluation`]

    Raises:
        `ValueError`: there is no such file, or none of its results are of that checkpoint.
    """
    header, tables, heading = _open(path, list(names))
    table = {
        task: {_without_folder(name): figure for name, figure in figures.items()}
        for task, figures in tables[heading].items()
    }
    match = re.fullmatch(r"(.*) \[(.*)\]", header["data"])
    dataset, split = match.groups() if match else (header["data"], None)
    dataset_id, dataset_name = dataset if _is_on_the_hub(dataset) else None, Path(dataset).name
    plots = header.pop("plots", None)
    header = _publishable(header, heading)
    header["data"] = (dataset_id or dataset_name) + (f" [{split}]" if split else "")
    main = header.get("metric of the paper") or "top1"
    settings = {task: _setting(header.get("setting", {}), task) for task in table}
    if dataset_id is None:
        revision = header.get("content", {}).get("images", {}).get("digest")
    else:
        revision = header.get("revisions", {}).get("test")
    figures = [
        Figure(
            dataset_name=dataset_name + (f" ({settings[task]})" if settings[task] else ""),
            dataset_id=dataset_id,
            split=split,
            task=task,
            name=name,
            is_main=name == main and task in MAIN_TASKS,
            setting=settings[task],
            revision=revision,
            dataset=dataset_name,
            **figure,
        )
        for task, figures in table.items()
        for name, figure in figures.items()
    ]
    folder = Path(path).parent
    # Files of earlier versions do not say which plots are theirs.
    drawn = sorted(folder.glob("plots/*.png")) if plots is None else [folder / plot for plot in plots]
    # An evaluation draws plots of the checkpoint that it measures first.
    return Evaluation(drawn if heading == next(iter(tables)) else [], header, table, figures)


def _open(path: str | Path, names: list[str]) -> tuple[dict, dict[str, dict], str]:
    """The head of a results.json, its tables, and what it calls the checkpoint of these names."""
    try:
        header = json.loads(Path(path).read_text(encoding="utf-8"))
        tables, _ = header.pop("results"), header["data"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a results.json of cyclip evaluate: {error!r}") from error
    wanted = {Path(name).resolve() for name in names}
    for heading in tables:
        if Path(heading).resolve() in wanted:
            return header, tables, heading
    raise ValueError(
        f"{path} has results of {', '.join(tables)}, but none of {', '.join(names)}. If one of them is this model from "
        "before it was moved, name it with --results_of."
    )


def _setting(setting: Mapping[str, str], task: str) -> str | None:
    """What of a setting shapes the figures of a task, in words."""
    shaping = {name: SHAPING[name] for name in setting}
    task = task.removesuffix(CENTRED)
    parts = [f"{name} {setting[name]}" for name, tasks in shaping.items() if tasks is None or task in tasks]
    return "; ".join(parts) or None


def _publishable(header: dict, heading: str) -> dict:
    """What may be published of the head of a results.json: no local folders, and nothing of other checkpoints."""
    header = dict(header)
    if "checkpoints" in header:
        header["checkpoint"] = header.pop("checkpoints").get(heading)
    if "failed" in header:
        # The reasons may name files.
        header["failed"] = sorted(header["failed"])
    if "reference data" in header:
        header["reference data"] = header["reference data"] and _without_folder(header["reference data"])
        header["shifted data"] = [_without_folder(name) for name in header["shifted data"]]
    for part in ("content", "revisions", "broken images left out"):
        if part in header:
            header[part] = {_without_folder(name): value for name, value in header[part].items()}
    if "arguments" in header:
        told = {name: value for name, value in header["arguments"].items() if name not in ("output_dir", "compare_to")}
        for name in FILES & told.keys():
            values = told[name] if isinstance(told[name], list) else [told[name]]
            short = [value if _is_on_the_hub(value) else Path(value).name for value in values]
            told[name] = short if isinstance(told[name], list) else short[0]
        header["arguments"] = told
    return header


def _is_on_the_hub(dataset: str) -> bool:
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", dataset)
    return is_id is not None and not Path(dataset).exists()


def _without_folder(name: str) -> str:
    """Shortens the folder in the name of a figure: `"/home/me/sketches [test] top1"` to `"sketches [test] top1"`."""
    dataset, bracket, rest = name.partition(" [")
    prefix = "images of " if dataset.startswith("images of ") else ""
    dataset = dataset.removeprefix(prefix)
    return name if not bracket or _is_on_the_hub(dataset) else f"{prefix}{Path(dataset).name} [{rest}"


def eval_results(figures: Iterable[Figure]) -> list[EvalResult]:
    """
    Every figure, with the value of its file, for `model-index` in the metadata of a card. What tells two measurements of
    one set apart stands in the configuration of the data, since the Hub groups figures by it, and in their revision.
    """
    return [
        EvalResult(
            task_type=TASK_TYPES.get(figure.task.removesuffix(CENTRED), "image-feature-extraction"),
            dataset_type=figure.dataset_id or figure.dataset,
            dataset_name=figure.dataset_name,
            dataset_config=figure.setting,
            dataset_split=figure.split,
            dataset_revision=figure.revision,
            metric_type="accuracy" if figure.name == "top1" else figure.name,
            metric_name=f"{figure.task}: {figure.name}",
            metric_value=figure.value,
        )
        for figure in figures
    ]


def eval_result_entries(
    figures: Iterable[Figure], published: Mapping[str, list[EvalResultEntry]]
) -> dict[str, list[EvalResultEntry]]:
    """
    The files `.eval_results/*.yaml`, by path, which huggingface_hub prefers: the main figure on every set that the Hub
    has. The `published` entries stay if they measure something else.
    """

    def measured(entry: EvalResultEntry) -> tuple[str, ...]:
        # Metric and split have no field but the notes.
        return entry.dataset_id, entry.task_id, (entry.notes or "").partition(", as a share of")[0]

    files = {}
    for figure in figures:
        if not figure.is_main or figure.dataset_id is None:
            continue
        notes = f"{figure.name} on the split {figure.split}" + (f" ({figure.setting})" if figure.setting else "")
        if figure.items is not None:
            notes += f", as a share of {figure.items} test items, 95 % interval {figure.low:.4f} to {figure.high:.4f}"
        new = EvalResultEntry(figure.dataset_id, TASK_TYPES[figure.task], figure.value, notes=notes)
        path = f".eval_results/{figure.dataset_id.replace('/', '--')}.yaml"
        entries = files.get(path) or published.get(path, [])
        files[path] = [*(entry for entry in entries if measured(entry) != measured(new)), new]
    return files
