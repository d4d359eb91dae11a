"""Draws accuracy and consistency against the length of the training, from a sweep over epochs and one longer comparison.

    python benchmarks/plot_length.py picture.png benchmarks/results/study_length benchmarks/results/study_emoji_256 160

Points are means over seeds, bars 95 % intervals (Student's t) over them, of each arm by itself.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from modeling_cyclip.comparison.measure import difference
from modeling_cyclip.comparison.plots import COLOURS, MARKERS
from modeling_cyclip.evaluation.plots import save


FIGURES = {"zero-shot top-1 (%)": ("zero_shot", "top1"), "consistency at k=1 (%)": ("consistency", "k=1")}


def read(report: Path) -> dict[str, dict[str, list[float]]]:
    """By label of an axis and arm, the first evaluation's figures of all seeds, in percent."""
    results = json.loads((report / "results.json").read_text())["results"]
    tasks = next(iter(results.values()))
    return {
        label: {arm: [100 * one for one in entry["seeds"]] for arm, entry in tasks[task][name].items()}
        for label, (task, name) in FIGURES.items()
    }


def half_interval(by_seed: list[float]) -> float:
    interval = difference(by_seed, [0.0] * len(by_seed)).seeds
    return (interval[1] - interval[0]) / 2 if interval else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="PNG to write, with an SVG beside it.")
    parser.add_argument("sweep", type=Path, help="Report of a comparison that sweeps num_train_epochs.")
    parser.add_argument("longest", type=Path, help="Report of the same arms trained for longer.")
    parser.add_argument("epochs", type=int, help="The epochs of the longer ones.")
    args = parser.parse_args()

    if list(json.loads((args.sweep / "results.json").read_text())["swept"]) != ["num_train_epochs"]:
        sys.exit(f"error: {args.sweep} sweeps no num_train_epochs.")
    swept, longest = read(args.sweep), read(args.longest)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, label in zip(figure.subplots(1, 2), FIGURES, strict=True):
        arms = [arm for arm in longest[label] if not arm.endswith("means removed")]
        for arm, colour, marker in zip(arms, COLOURS, MARKERS, strict=False):
            by_epochs = {
                int(condition.removeprefix(f"{arm} at ")): by_seed
                for condition, by_seed in swept[label].items()
                if condition.removeprefix(f"{arm} at ").isdigit()
            }
            by_epochs[args.epochs] = longest[label][arm]
            means = [np.mean(by_seed) for by_seed in by_epochs.values()]
            halves = [half_interval(by_seed) for by_seed in by_epochs.values()]
            axes.errorbar(list(by_epochs), means, halves, label=arm, color=colour, marker=marker, capsize=3)
        axes.set(xlabel="epochs", ylabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(list(by_epochs), [str(epochs) for epochs in by_epochs])
        axes.minorticks_off()
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    print(save(figure, args.picture))


if __name__ == "__main__":
    main()
