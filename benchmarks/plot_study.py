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

from modeling_cyclip.comparison.measure import difference
from modeling_cyclip.comparison.plots import COLOURS, MARKERS
from modeling_cyclip.evaluation.plots import save


def points(by_seed: list[float], other: list[float]) -> str:
    """The difference in points, with the half of its interval where there is one."""
    differs = difference([100 * figure for figure in by_seed], [100 * figure for figure in other])
    return f"{differs.value:+.2f}" + (f" ± {differs.seeds[1] - differs.value:.2f}" if differs.seeds else "")


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
    figure = Figure(figsize=(3.6 * len(reports), 3.6), layout="constrained")
    handles = {}
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for axes, (title, accuracy, consistency) in zip(panels, reports, strict=True):
        first, *_ = accuracy
        means_removed = next((arm for arm in accuracy if arm.endswith("means removed")), None)
        for arm in accuracy:
            x, y = (100 * np.mean(figures[arm]) for figures in (accuracy, consistency))
            compared = ((accuracy, first), (consistency, first), (consistency, means_removed))
            told = [
                "" if other in (None, arm) else points(figures[arm], figures[other]) for figures, other in compared
            ]
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
