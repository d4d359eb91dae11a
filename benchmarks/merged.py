"""What averaging with the start brings (WiSE-FT): the trainings of a comparison that tunes a checkpoint, merged with it, and measured.

    cyclip compare --config study_finetune
    python benchmarks/merged.py study_finetune

A table with zero-shot top-1 and consistency of each evaluation in percent: of the checkpoint before, of each arm, and of each arm
merged half and half, with 95 % intervals over seeds (Student's t).
"""

import argparse
import math
from pathlib import Path

import numpy as np
from scipy.stats import t

from modeling_cyclip.arguments import parse_with_config
from modeling_cyclip.comparison.measure import load_evaluations, measure, number
from modeling_cyclip.comparison.runs import ComparisonArguments, Run, plan_runs
from modeling_cyclip.merge import merge_checkpoints


FIGURES = {"zero_shot": "top1", "consistency": "k=1"}


def figures(run: Run, evaluations) -> dict[str, float]:
    """The figures of the table, in percent, by their heading."""
    found = {}
    for evaluation in evaluations:
        measured = measure(run, evaluation)
        for task, name in FIGURES.items():
            if task in measured:
                found[f"{evaluation.name}, {task.replace('_', '-')}"] = 100 * number(measured[task][name])
    return found


def merged(run: Run, start: str) -> Run:
    folder = run.folder.parent.parent / "merged" / run.folder.name
    if not folder.is_dir():
        merge_checkpoints(start, run.folder, folder)
    return Run(f"{run.arm}, merged", run.seed, None, folder, run.argv)


def cell(by_seed: list[float]) -> str:
    if len(by_seed) == 1:
        return f"{by_seed[0]:.1f}"
    half = float(t.ppf(0.975, len(by_seed) - 1)) * np.std(by_seed, ddof=1) / math.sqrt(len(by_seed))
    return f"{np.mean(by_seed):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="name or file of a comparison with model_name_or_path, that has been run")
    (args,) = parse_with_config(
        (ComparisonArguments,), ["--config", parser.parse_args().comparison], "", "training/recipes/comparisons"
    )
    evaluations, start = load_evaluations(args), args.overrides["model_name_or_path"]
    runs = plan_runs(args)
    # The start is measured like a training, but beside them: its own folder stays as it is.
    before = Path(args.output_dir, "merged", "before")
    if not before.is_dir():
        merge_checkpoints(start, start, before)
    table = {"before": [figures(Run("before", 0, None, before, ()), evaluations)]}
    for arm in args.arms:
        of_arm = [run for run in runs if run.arm == arm]
        table[arm] = [figures(run, evaluations) for run in of_arm]
        table[f"{arm}, merged"] = [figures(merged(run, start), evaluations) for run in of_arm]
    headings = list(table["before"][0])
    print(f"\n| | {' | '.join(headings)} |\n|---|{'---:|' * len(headings)}")
    for arm, by_seed in table.items():
        print(f"| {arm} | {' | '.join(cell([one[heading] for one in by_seed]) for heading in headings)} |")


if __name__ == "__main__":
    main()
