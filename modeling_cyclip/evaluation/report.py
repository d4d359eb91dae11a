"""results.json and results.md."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from ..run_record import _commit, _hardware, _versions
from .arguments import DataArguments, EvaluationArguments
from .content import digest, image_digests, sample
from .evaluation_set import EvaluationSet
from .intervals import Measure


# Stands between the two checkpoints in the heading of their differences.
MINUS = " minus "

# Ends the names of protocols that ran on centred embeddings.
CENTRED = ", centred"

Results = Mapping[str, Mapping[str, Measure | float]]

BY_CLASSES = (
    "zero_shot", "shift", "consistency", "fine_coarse", "linear_probe", "geometry", "image_retrieval", "clustering"
)  # fmt: skip
BY_REFERENCES = ("consistency", "linear_probe")
# The arguments that shape figures, and the tasks whose figures they shape; `None` stands for all.
SHAPING: dict[str, tuple[str, ...] | None] = {
    "image_column": None,
    "exclude": None,
    "dtype": None,
    "label_column": BY_CLASSES,
    "class_splits": BY_CLASSES,
    "templates": BY_CLASSES,
    "classes": BY_CLASSES,
    "coarse_column": ("fine_coarse",),
    "train_split": BY_REFERENCES,
    "cross_validate": BY_REFERENCES,
    "shift_datasets": ("shift",),
    "shift_splits": ("shift",),
    "baseline_points": ("shift",),
    "caption_column": ("retrieval", "geometry", "image_retrieval", "clustering", "winoground"),
    "seed": ("consistency", "linear_probe", "clustering"),
}


def told(*arguments: Any) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    values = {}
    for one in arguments:
        for field in fields(one):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if (value := getattr(one, field.name)) != default:
                values[field.name] = value
    return values


def command_line(arguments: Mapping[str, Any]) -> str:
    """The command of an evaluation with these arguments."""
    words = ["cyclip", "evaluate"]
    for name, value in arguments.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def setting(data_args: DataArguments, args: EvaluationArguments, data: EvaluationSet) -> dict[str, str]:
    """
    What was measured and how, as far as it differs from the defaults: the arguments of `SHAPING` in words. Two measurements
    of one set are the same only where it is. Templates count by their content, and so do classes that are the distinct
    values of a string column, since these depend on all splits.
    """
    found = {name: value for name, value in told(data_args, args).items() if name in SHAPING}
    if found.get("train_split") == data.benchmark.train_split:
        found.pop("train_split", None)
    if data_args.templates is not None:
        found["templates"] = f"{Path(data_args.templates).stem} {digest(data.templates)[:8]}"
    if args.baseline_points is not None:
        found["baseline_points"] = f"{Path(args.baseline_points).stem} {digest(data.shifts[0].baseline_line)[:8]}"
    if data.pooled_classes:
        found["classes"] = f"{len(data.class_names)} {digest(data.class_names)[:8]}"
    if shifted := found.get("shift_datasets"):
        found["shift_datasets"] = [Path(name).name if Path(name).exists() else name for name in shifted]
    return {name: " ".join(value) if isinstance(value, list) else str(value) for name, value in found.items()}


def content(data: EvaluationSet) -> dict[str, Any]:
    """How much the measured data hold, with a digest of each part, by which other data show."""
    images = {"images": data, "reference images": data.train}
    images |= {f"images of {shift.name}": shift for shift in data.shifts}
    found = {
        name: {"number": len(one.dataset), "digest": digest(image_digests(sample(one.dataset)))}
        for name, one in images.items()
        if one is not None
    }
    parts = {
        "labels": None if data.labels is None else data.labels.tolist(),
        "class names": data.class_names,
        "templates": None if data.labels is None else data.templates,
        "captions": data.captions,
        "superclasses": None if data.superclasses is None else data.superclasses.tolist(),
    }
    return found | {
        name: {"number": len(part), "digest": digest(part)} for name, part in parts.items() if part is not None
    }


def measurement(
    data_args: DataArguments,
    args: EvaluationArguments,
    data: EvaluationSet,
    fingerprints: Mapping[str, str],
    device: torch.device,
    num_processes: int,
) -> dict[str, Any]:
    """The head of results.json: everything that shapes a figure. `fingerprints` are those of the checkpoints."""
    arguments = told(data_args, args)
    sets = {"test": data, **({} if data.train is None else {"reference": data.train})}
    sets |= {shift.name: shift for shift in data.shifts}
    return {
        "data": data.name,
        "reference data": None if data.train is None else data.train.name,
        "shifted data": [shift.name for shift in data.shifts],
        "setting": setting(data_args, args, data),
        "content": content(data),
        "broken images left out": {name: one.num_broken for name, one in sets.items() if one.num_broken},
        "notes": [*data.notes],
        "metric of the paper": data.benchmark.metric,
        "checkpoints": dict(fingerprints),
        "precision": args.dtype,
        "seed": args.seed,
        "command": command_line(arguments),
        "arguments": arguments,
        "processes": num_processes,
        "hardware": _hardware(device),
        "environment": _versions(),
        "commit": _commit(),
    }


def results_json(results: Results, seed: int, left_out: Mapping[str, int] | None = None) -> dict:
    """
    Figures as plain numbers, with interval and number of test items where they are means over items. `left_out` has, by
    task, how many images could not be opened, which stands beside each of its figures.
    """

    def plain(figure: Measure | float) -> dict:
        if not isinstance(figure, Measure):
            return {"value": figure}
        low, high = figure.interval(seed=seed)
        return {"value": figure.value, "low": low, "high": high, "items": len(figure)}

    def beside(task: str) -> dict:
        number = (left_out or {}).get(task.removesuffix(CENTRED), 0)
        return {"left_out": number} if number else {}

    return {
        task: {name: plain(figure) | beside(task) for name, figure in figures.items()}
        for task, figures in results.items()
    }


def left_out(data: EvaluationSet) -> dict[str, int]:
    """By task, how many images could not be opened that its figures would have been about."""
    tasks = {*BY_CLASSES, "retrieval", "winoground"}
    numbers = dict.fromkeys(tasks, data.num_broken)
    for task in BY_REFERENCES:
        numbers[task] += 0 if data.train is None else data.train.num_broken
    numbers["shift"] += sum(shift.num_broken for shift in data.shifts)
    return numbers


def differences(results: Results, others: Results) -> Results:
    """Each figure of the first minus that of the second. Means over test items are paired, item by item."""

    def difference(figure: Measure | float, other: Measure | float) -> Measure | float:
        return figure.minus(other) if isinstance(figure, Measure) else figure - other

    return {
        task: {
            name: difference(figure, others[task][name]) for name, figure in figures.items() if name in others[task]
        }
        for task, figures in results.items()
        if task in others
    }


def markdown_table(results: dict, unit: str = "%") -> str:
    """One row for each figure. Means over test items are shares, shown in hundredths; other figures are shown as is."""
    lines = ["| task | figure | value | 95 % interval | test items |", "|---|---|---:|---:|---:|"]
    for task, figures in results.items():
        for name, figure in figures.items():
            broken = f" ({figure['left_out']:,} images left out)" if "left_out" in figure else ""
            if "items" in figure:
                value, low, high = (f"{100 * figure[key]:.2f}" for key in ("value", "low", "high"))
                lines.append(f"| {task} | {name} | {value} {unit} | {low} to {high} | {figure['items']:,}{broken} |")
            else:
                lines.append(f"| {task} | {name} | {figure['value']:.4f} | |{broken} |")
    return "\n".join(lines)


def write_report(output_dir: Path, header: dict, tables: dict[str, dict], plots: list[Path]) -> str:
    """
    Writes `results.json` and `results.md`, and returns the tables as Markdown. `tables` holds what `results_json` gives, by
    heading (a checkpoint, or a difference of two); `plots` are PNG files in `output_dir`, to be linked.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    # A folder may hold the plots of an earlier run, too.
    names = [plot.relative_to(output_dir).as_posix() for plot in plots]
    (output_dir / "results.json").write_text(
        json.dumps({**header, "plots": names, "results": tables}, indent=2) + "\n"
    )
    text = "\n\n".join(
        f"## {heading}\n\n{markdown_table(results, 'points' if MINUS in heading else '%')}"
        for heading, results in tables.items()
    )
    facts = "\n".join(line for name, value in header.items() if (line := _fact(name, value)))
    pictures = "\n\n".join(
        f"![{plot.stem}]({plot.relative_to(output_dir)})\n\n[SVG]({plot.with_suffix('.svg').relative_to(output_dir)})"
        for plot in plots
    )
    body = "\n\n".join(part for part in ("# Evaluation", facts, text, pictures) if part)
    (output_dir / "results.md").write_text(body + "\n")
    return text


def _fact(name: str, value: Any) -> str | None:
    """One line of the head of results.md. The arguments stand in the command already."""
    if value in (None, [], {}) or name == "arguments":
        return None
    if name == "content":
        value = "; ".join(f"{part['number']:,} {what} ({part['digest']})" for what, part in value.items())
    elif name == "command":
        value = f"`{value}`"
    elif isinstance(value, dict):
        between = ": " if name == "failed" else " "
        value = "; ".join(f"{key}{between}{one}" for key, one in value.items())
    elif isinstance(value, list):
        value = "; ".join(map(str, value))
    return f"- {name}: {value}"
