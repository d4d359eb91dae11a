"""results.json and results.md."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def command_line(arguments: Mapping[str, Any]) -> str:
    """The command of an evaluation with these arguments."""
    words = ["cyclip", "evaluate"]
    for name, value in arguments.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def results_json(results: Results, seed: int, limits: Mapping[str, dict]) -> dict:
    """
    Figures as plain numbers, with interval and number of test items where they are means over items. `limits` of a task, as
    of [`~modeling_cyclip.evaluation.setting.limits`], stand beside each of its figures.
    """

    def plain(figure: Measure | float) -> dict:
        if not isinstance(figure, Measure):
            return {"value": figure}
        low, high = figure.interval(seed=seed)
        found = {"value": figure.value, "low": low, "high": high, "items": len(figure)}
        return found if figure.chance is None else {**found, "chance": figure.chance}

    return {
        task: {name: plain(figure) | limits.get(task.removesuffix(CENTRED), {}) for name, figure in figures.items()}
        for task, figures in results.items()
    }


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
    lines = ["| task | figure | value | chance | 95 % interval | test items |", "|---|---|---:|---:|---:|---:|"]
    for task, figures in results.items():
        for name, figure in figures.items():
            label = f"{in_markdown(task)} | {in_markdown(name)}"
            limits = in_words(figure.get("left_out", 0), figure.get("shared", 0.0))
            if "items" in figure:
                chance = f" {100 * figure['chance']:.2f} %" if "chance" in figure else ""
                value, low, high = (f"{100 * figure[key]:.2f}" for key in ("value", "low", "high"))
                lines.append(f"| {label} | {value} {unit} |{chance} | {low} to {high} | {figure['items']:,}{limits} |")
            else:
                lines.append(f"| {label} | {figure['value']:.4f} | | |{limits} |")
    return "\n".join(lines)


def in_markdown(text: Any) -> str:
    """A name that stands in Markdown, and in a cell of a table, as it is."""
    # A bracket alone is none of Markdown's: only one that an address or a definition follows.
    text = re.sub(r"([\\`*<>|#]|\](?=[(\[:]))", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)


def in_words(left_out: int, shared: float) -> str:
    """What a reader should know of the test items of a figure, to stand behind their number."""
    broken = f" ({left_out:,} images could not be opened)" if left_out else ""
    return broken + (f" ({100 * shared:.2g} % are reference images, too)" if shared else "")


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
        f"## {in_markdown(heading)}\n\n{markdown_table(results, 'points' if MINUS in heading else '%')}"
        for heading, results in tables.items()
    )
    facts = "\n".join(line for name, value in header.items() if (line := _fact(name, value)))
    pictures = "\n\n".join(
        f"![{plot.stem}]({plot.relative_to(output_dir)})\n\n[SVG]({plot.with_suffix('.svg').relative_to(output_dir)})"
        for plot in plots
    )
    body = "\n\n".join(part for part in ("# Evaluation", facts, text, pictures) if part)
    (output_dir / "results.md").write_text(body + "\n", encoding="utf-8")
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
