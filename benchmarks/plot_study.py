"""Draws what arms of `cyclip compare` gain over the first one in accuracy and consistency, one panel a report, and tabulates it.

    python benchmarks/plot_study.py picture.png benchmarks/results/study_shapes benchmarks/results/study_emoji_256

Two reports of the same arms with other seeds are one where their folders are joined by a `+`. Intervals are those of 95 % over seeds
(Student's t), of differences with the same seed. The table has the differences to the arm without modality means, too.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modeling_cyclip.comparison.measure import difference
from modeling_cyclip.comparison.plots import COLOURS, MARKERS
from modeling_cyclip.evaluation.plots import save


COLUMNS = 3
# Points below the first arm from which on an arm is told in words, so that the others stay apart.
FAR = 20


def compared(by_seed: list[float], other: list[float]) -> tuple[float, float]:
    """A difference in points, and the half of its interval, which is 0 with a single seed."""
    differs = difference([100 * figure for figure in by_seed], [100 * figure for figure in other])
    return differs.value, differs.seeds[1] - differs.value if differs.seeds else 0.0


def told(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.1f}" + (f" ± {pair[1]:.1f}" if pair[1] else "")


def read(folders: list[Path]) -> tuple[str, dict[str, list[float]], dict[str, list[float]]]:
    """A title, and zero-shot top-1 and consistency at k=1 of the first evaluation, by arm and seed: arms that all reports have."""
    accuracy, consistency = {}, {}
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        tasks = next(iter(results["results"].values()))
        for figures, (task, name) in ((accuracy, ("zero_shot", "top1")), (consistency, ("consistency", "k=1"))):
            for arm, entry in tasks[task][name].items():
                figures.setdefault(arm, []).extend(entry["seeds"])
    num_seeds = max(map(len, accuracy.values()))
    kept = [arm for arm, by_seed in accuracy.items() if len(by_seed) == num_seeds]
    title = (
        f"{folders[0].name.removeprefix('study_').replace('_', ', batch ')}, {num_seeds} seed{'s' * (num_seeds > 1)}"
    )
    return title, *({arm: figures[arm] for arm in kept} for figures in (accuracy, consistency))


def tabulate(title: str, accuracy: dict[str, list[float]], consistency: dict[str, list[float]]) -> None:
    first = next(iter(accuracy))
    means_removed = next((arm for arm in accuracy if arm.endswith("means removed")), None)
    for arm in accuracy:
        cells = []
        for figures in (accuracy, consistency):
            cells.append(f"{100 * np.mean(figures[arm]):.1f}")
            cells += [
                "" if other in (None, arm) else told(compared(figures[arm], figures[other]))
                for other in (first, means_removed)
            ]
        print(f"| {title} | {arm} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write, with an SVG beside it.")
    parser.add_argument("reports", nargs="+", help="Folders with the results.json of a comparison.")
    args = parser.parse_args()

    reports = [read([Path(folder) for folder in joined.split("+")]) for joined in args.reports]
    print("| data | arm | zero-shot top-1 | minus the first | minus means removed | consistency, k=1 | the same | |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for report in reports:
        tabulate(*report)

    # An arm looks the same in every panel.
    arms = list(dict.fromkeys(arm for _, accuracy, _ in reports for arm in list(accuracy)[1:]))
    styles = {arm: {"color": COLOURS[1 + index], "marker": MARKERS[1 + index]} for index, arm in enumerate(arms)}
    rows = math.ceil(len(reports) / COLUMNS)
    size = (3.8 * min(len(reports), COLUMNS), 3.4 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, min(len(reports), COLUMNS), squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(reports) :]:
        axes.set_axis_off()
    for axes, (title, accuracy, consistency) in zip(panels, reports, strict=False):
        first, *others = accuracy
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.axvline(0, color="0.5", linewidth=0.8)
        far = []
        for arm in others:
            (x, x_half), (y, y_half) = pairs = [
                compared(figures[arm], figures[first]) for figures in (accuracy, consistency)
            ]
            if min(x, y) > -FAR:
                axes.errorbar(x, y, y_half, x_half, **styles[arm], linestyle="none", markersize=7, capsize=3)
            else:
                far.append(f"{arm}:\n{', '.join(map(told, pairs))}")
        if far:
            box = {"facecolor": "white", "edgecolor": "0.8", "linewidth": 0.6}
            axes.text(0.96, 0.95, "\n".join(far), transform=axes.transAxes, fontsize=8, ha="right", va="top", bbox=box)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel(f"zero-shot top-1, points over {first}", fontsize=10)
    figure.supylabel(f"consistency at k=1, points over {first}", fontsize=10)
    handles = [Line2D([], [], **styles[arm], linestyle="none", label=arm) for arm in arms]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    print(save(figure, args.picture))


if __name__ == "__main__":
    main()
