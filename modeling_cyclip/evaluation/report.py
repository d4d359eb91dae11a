"""results.json and results.md."""

import json
from collections.abc import Mapping
from pathlib import Path

from .intervals import Measure


# Between the two checkpoints in the heading of their differences.
MINUS = " minus "

# What the names of protocols end with that ran on centred embeddings.
CENTRED = ", centred"

Results = Mapping[str, Mapping[str, Measure | float]]


def figure_json(figure: Measure | float, seed: int) -> dict:
    """A figure as plain numbers, with interval and number of test items where it is a mean over items."""
    if not isinstance(figure, Measure):
        return {"value": figure}
    low, high = figure.interval(seed=seed)
    return {"value": figure.value, "low": low, "high": high, "items": len(figure)}


def results_json(results: Results, seed: int) -> dict:
    return {
        task: {name: figure_json(figure, seed) for name, figure in figures.items()}
        for task, figures in results.items()
    }


def differences(results: Results, others: Results) -> Results:
    """Figure by figure the first minus the second; for means over test items paired, item by item."""

    def difference(figure: Measure | float, other: Measure | float) -> Measure | float:
        return figure.minus(other) if isinstance(figure, Measure) else figure - other

    return {
        task: {name: difference(figure, others[task][name]) for name, figure in figures.items()}
        for task, figures in results.items()
    }


def markdown_table(results: dict, unit: str = "%") -> str:
    """One row a figure. Means over test items are shares and shown in hundredths; other figures as they are."""
    lines = ["| task | figure | value | 95 % interval | test items |", "|---|---|---:|---:|---:|"]
    for task, figures in results.items():
        for name, figure in figures.items():
            if "items" in figure:
                value, low, high = (f"{100 * figure[key]:.2f}" for key in ("value", "low", "high"))
                lines.append(f"| {task} | {name} | {value} {unit} | {low} to {high} | {figure['items']:,} |")
            else:
                lines.append(f"| {task} | {name} | {figure['value']:.4f} | | |")
    return "\n".join(lines)


def write_report(output_dir: Path, header: dict, tables: dict[str, dict], plots: list[Path]) -> str:
    r"""
    Args:
        output_dir (`Path`):
            Where `results.json` and `results.md` go.
        header (`dict`):
            What was measured, on what and how.
        tables (`dict[str, dict]`):
            Results by heading (a checkpoint, or a difference of two), as `results_json` gives them.
        plots (`list[Path]`):
            PNG files in `output_dir`, to be linked.

    Returns:
        `str`: the tables as Markdown.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps({**header, "results": tables}, indent=2) + "\n")
    text = "\n\n".join(
        f"## {heading}\n\n{markdown_table(results, 'points' if MINUS in heading else '%')}"
        for heading, results in tables.items()
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in header.items())
    pictures = "\n\n".join(
        f"![{plot.stem}]({plot.relative_to(output_dir)})\n\n[SVG]({plot.with_suffix('.svg').relative_to(output_dir)})"
        for plot in plots
    )
    body = "\n\n".join(part for part in ("# Evaluation", facts, text, pictures) if part)
    (output_dir / "results.md").write_text(body + "\n")
    return text
