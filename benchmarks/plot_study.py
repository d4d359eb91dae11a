"""Draws accuracy against consistency, an arm of `cyclip compare` a point, one panel a report, and tabulates both.

    python benchmarks/plot_study.py picture.png benchmarks/results/study_shapes benchmarks/results/study_emoji_256

Small marks are seeds, large ones their means. The table has the differences to the first arm, and to the arm without modality means
where there is one, with 95 % intervals over seeds (Student's t).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

from modeling_cyclip.comparison.plots import COLOURS, MARKERS
from modeling_cyclip.evaluation.plots import save


def difference(by_seed: list[float], other: list[float]) -> tuple[float, float]:
    """Mean difference in points, seed by seed, and the half of its 95 % interval (nan for a single seed)."""
    points = 100 * (np.array(by_seed) - np.array(other))
    if len(points) < 2:
        return points.mean(), float("nan")
    return points.mean(), t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / len(points) ** 0.5


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

    figure = Figure(figsize=(3.6 * len(args.reports), 3.6), layout="constrained")
    print(
        "| data | arm | zero-shot top-1 | minus the first | consistency, k=1 | minus the first | minus means removed |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    # An arm looks the same in every panel.
    styles = {
        arm: {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": "none"}
        for index, arm in enumerate(dict.fromkeys(arm for report in args.reports for arm in read(report)[1]))
    }
    handles = {}
    for axes, report in zip(figure.subplots(1, len(args.reports), squeeze=False)[0], args.reports, strict=True):
        title, accuracy, consistency = read(report)
        first, *_ = accuracy
        means_removed = next((arm for arm in accuracy if arm.endswith("means removed")), None)
        for arm in accuracy:
            x, y = (100 * np.mean(figures[arm]) for figures in (accuracy, consistency))
            told = []
            for figures, other in ((accuracy, first), (consistency, first), (consistency, means_removed)):
                value, half = difference(figures[arm], figures[other]) if other else (0.0, float("nan"))
                told.append("" if arm == other else f"{value:+.2f} ± {half:.2f}")
            for seed in zip(accuracy[arm], consistency[arm], strict=True):
                axes.plot(*(100 * np.array(seed)), **styles[arm], alpha=0.35, markersize=4)
            (handles[arm],) = axes.plot(x, y, **styles[arm], markersize=8)
            print(f"| {title} | {arm} | {x:.2f} | {told[0]} | {y:.2f} | {told[1]} | {told[2]} |")
        axes.set(title=title, xlabel="zero-shot top-1 (%)", ylabel="consistency at k=1 (%)")
        for limit, figures in ((axes.set_xlim, accuracy), (axes.set_ylim, consistency)):
            limit(0, 108 * max(map(max, figures.values())))
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    print(save(figure, args.picture))


if __name__ == "__main__":
    main()
