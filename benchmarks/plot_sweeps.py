"""Draws several sweeps of `cyclip compare` beside each other, by zero-shot top-1 of the first evaluation.

python benchmarks/plot_sweeps.py sweeps.png outputs/compare_emoji_weights outputs/compare_emoji_warmup
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from modeling_cyclip.comparison import plots
from modeling_cyclip.comparison.report import swept_curves
from modeling_cyclip.evaluation.plots import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write, with an SVG beside it.")
    parser.add_argument("reports", type=Path, nargs="+", help="Folders with the results.json of a sweep.")
    args = parser.parse_args()

    figure = Figure(figsize=(5 * len(args.reports), 4.2), layout="constrained")
    for axes, report in zip(figure.subplots(1, len(args.reports), squeeze=False)[0], args.reports, strict=True):
        results = json.loads((report / "results.json").read_text())
        evaluation, tasks = next(iter(results["results"].items()))
        curves, lines = swept_curves(results, tasks["zero_shot"]["top1"])
        axes.set_title(plots.setting_of(results))
        plots.sweep(axes, curves, lines, ", ".join(results["swept"]), f"{evaluation}, zero-shot top-1")
    print(save(figure, args.picture))


if __name__ == "__main__":
    main()
