"""Draws what arms of `cyclip compare` gain over the first one in accuracy and consistency, one panel a report, and tabulates it.

    python benchmarks/plot_study.py picture.png benchmarks/results/study_shapes benchmarks/results/study_emoji_256

Intervals are those of 95 % over seeds (Student's t). The table has the differences to the arm without modality means, too, where
there is one.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from modeling_cyclip.comparison.measure import difference
from modeling_cyclip.comparison.plots import COLOURS, MARKERS
from modeling_cyclip.evaluation.plots import save


COLUMNS = 3
# Points below the first arm from which on an arm is named in a corner, so that the others stay apart.
FAR = 20


def compared(by_seed: list[float], other: list[float]) -> tuple[float, float]:
    """A difference in points, and the half of its interval, which is 0 with a single seed."""
    differs = difference([100 * figure for figure in by_seed], [100 * figure for figure in other])
    return differs.value, differs.seeds[1] - differs.value if differs.seeds else 0.0


def read(report: Path) -> tuple[str, dict[str, list[float]], dict[str, list[float]]]:
    """A title, and zero-shot top-1 and consistency at k=1 of the first evaluation, by arm and seed."""
    results = json.loads((report / "results.json").read_text())
    tasks = next(iter(results["results"].values()))
    accuracy, consistency = (
        {arm: entry["seeds"] for arm, entry in figures.items()}
        for figures in (tasks["zero_shot"]["top1"], tasks["consistency"]["k=1"])
    )
    seeds = f"{len(results['seeds'])} seed{'s' * (len(results['seeds']) > 1)}"
    return f"{report.name.removeprefix('study_')}, {seeds}", accuracy, consistency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write, with an SVG beside it.")
    parser.add_argument("reports", type=Path, nargs="+", help="Folders with the results.json of a comparison.")
    args = parser.parse_args()

    print(
        "| data | arm | zero-shot top-1 | minus the first | consistency, k=1 | minus the first | minus means removed |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    reports = [read(report) for report in args.reports]
    # An arm looks the same in every panel.
    styles = {
        arm: {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": "none"}
        for index, arm in enumerate(dict.fromkeys(arm for _, accuracy, _ in reports for arm in accuracy))
    }
    rows = math.ceil(len(reports) / COLUMNS)
    figure = Figure(figsize=(3.8 * min(len(reports), COLUMNS), 3.6 * rows), layout="constrained")
    handles = {}
    panels = figure.subplots(rows, min(len(reports), COLUMNS), squeeze=False).ravel()
    for axes in panels[len(reports) :]:
        axes.set_axis_off()
    for axes, (title, accuracy, consistency) in zip(panels, reports, strict=False):
        first, *others = accuracy
        means_removed = next((arm for arm in accuracy if arm.endswith("means removed")), None)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        far = []
        for arm in accuracy:
            x, y = (100 * np.mean(figures[arm]) for figures in (accuracy, consistency))
            differences = [
                None if other in (None, arm) else compared(figures[arm], figures[other])
                for figures, other in ((accuracy, first), (consistency, first), (consistency, means_removed))
            ]
            told = [
                "" if pair is None else f"{pair[0]:+.2f}" + f" ± {pair[1]:.2f}" * (pair[1] > 0) for pair in differences
            ]
            print(f"| {title} | {arm} | {x:.2f} | {told[0]} | {y:.2f} | {told[1]} | {told[2]} |")
            if arm not in others:
                continue
            (gained, half), (consistent, other_half) = differences[:2]
            place = (gained, consistent) if min(gained, consistent) > -FAR else (math.nan, math.nan)
            handles[arm] = axes.errorbar(*place, other_half, half, **styles[arm], markersize=8, capsize=3)
            if math.isnan(place[0]):
                far.append(f"{arm}: {gained:+.0f}, {consistent:+.0f}")
        axes.set(
            title=title, xlabel=f"zero-shot top-1, points over {first}", ylabel=f"consistency, points over {first}"
        )
        if far:
            box = {"facecolor": "white", "edgecolor": "0.8", "linewidth": 0.6}
            axes.text(0.97, 0.04, "\n".join(far), transform=axes.transAxes, fontsize=8, ha="right", bbox=box)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    print(save(figure, args.picture))


if __name__ == "__main__":
    main()
