"""What averaging with the start brings (WiSE-FT): the trainings of a comparison that tunes a checkpoint, merged with it, and measured.

    cyclip compare --config study_finetune
    python benchmarks/merged.py study_finetune

Two tables of zero-shot top-1 and consistency of each evaluation: in percent, of the checkpoint before, of each arm, and of each arm
merged half and half; and the differences to the checkpoint before, with 95 % intervals over test items, paired, and over seeds.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from modeling_cyclip.arguments import parse_with_config
from modeling_cyclip.comparison.measure import difference, load_evaluations, mean_and_std, measure
from modeling_cyclip.comparison.runs import ComparisonArguments, Run, plan_runs
from modeling_cyclip.evaluation.intervals import Measure
from modeling_cyclip.merge import merge_checkpoints


FIGURES = {"zero_shot": "top1", "consistency": "k=1"}


def figures(run: Run, evaluations) -> dict[str, Measure]:
    """The figures of the tables by their heading."""
    found = {}
    for evaluation in evaluations:
        measured = measure(run, evaluation)
        for task, name in FIGURES.items():
            if task in measured:
                found[f"{evaluation.name}, {task.replace('_', '-')}"] = measured[task][name]
    return found


def in_points(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="name or file of a comparison whose overrides have a model_name_or_path")
    name = parser.parse_args().comparison
    (args,) = parse_with_config((ComparisonArguments,), ["--config", name], "", "training/recipes/comparisons")
    runs, start = plan_runs(args), args.overrides.get("model_name_or_path")
    if start is None or args.sweep_arguments or any(run.cost() is None for run in runs):
        sys.exit(
            f"error: {name} must be a comparison that has been run, with a model_name_or_path in its overrides and no sweep."
        )
    evaluations = load_evaluations(args)
    with TemporaryDirectory() as folder:
        # The start is measured like a training, but beside them: its own folder stays as it is.
        before = Path(folder, "before")
        merge_checkpoints(start, start, before)
        table = {"before": [figures(Run("before", 0, None, before, ()), evaluations)]}
        for arm in args.arms:
            of_arm = [run for run in runs if run.arm == arm]
            table[arm] = [figures(run, evaluations) for run in of_arm]
            table[f"{arm}, merged"] = []
            for run in of_arm:
                target = Path(folder, run.folder.name)
                merge_checkpoints(start, run.folder, target)
                merged = Run(f"{arm}, merged", run.seed, None, target, run.argv)
                table[f"{arm}, merged"].append(figures(merged, evaluations))
    headings = list(table["before"][0])
    print(f"\n| | {' | '.join(headings)} |\n|---|{'---:|' * len(headings)}")
    for arm, by_seed in table.items():
        cells = []
        for heading in headings:
            mean, std = mean_and_std([one[heading] for one in by_seed])
            cells.append(f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}"))
        print(f"| {arm} | {' | '.join(cells)} |")
    print("\n| minus before | | points | 95 % over test items | over seeds |\n|---|---|---:|---:|---:|")
    for arm, by_seed in list(table.items())[1:]:
        for heading in headings:
            own = [one[heading] for one in by_seed]
            differs = difference(own, [table["before"][0][heading]] * len(own))
            print(
                f"| {arm} | {heading} | {100 * differs.value:+.1f} | {in_points(differs.items)} | {in_points(differs.seeds)} |"
            )


if __name__ == "__main__":
    main()
