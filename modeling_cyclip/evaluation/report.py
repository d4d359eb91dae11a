"""results.json and results.md."""

import json
from collections.abc import Mapping
from pathlib import Path

from .intervals import Measure


# Stands between the two checkpoints in the heading of their differences.
MINUS = " minus "

# Ends the names of protocols that ran on centred embeddings.
CENTRED = ", centred"

Results = Mapping[str, Mapping[str, Measure | float]]


def results_json(results: Results, seed: int) -> dict:
    """Figures as plain numbers, with interval and number of test items where they are means over items."""

    def plain(figure: Measure | float) -> dict:
        if not isinstance(figure, Measure):
            return {"value": figure}
        low, high = figure.interval(seed=seed)
        return {"value": figure.value, "low": low, "high": high, "items": len(figure)}

    return {task: {name: plain(figure) for name, figure in figures.items()} for task, figures in results.items()}


def differences(results: Results, others: Results) -> Results:
    """Each figure of the first minus that of the second. Means over test items are paired, item by item."""

    def difference(figure: Measure | float, other: Measure | float) -> Measure | float:
        return figure.minus(other) if isinstance(figure, Measure) else figure - other

    return {
        task: {name: difference(figure, others[task][name]) for name, figure in figures.items()}
        for task, figures in results.items()
    }


def markdown_table(results: dict, unit: str = "%") -> str:
    """One row for each figure. Means over test items are shares, shown in hundredths; other figures are shown as is."""
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
    """
    Writes `results.json` and `results.md`, and returns the tables as Markdown. `tables` holds what `results_json` gives, by
    heading (a checkpoint, or a difference of two); `plots` are PNG files in `output_dir`, to be linked.
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
