"""All that a comparison has measured, side by side: the content of its results.json, which report and pictures are made of."""

import json

from ..evaluation.intervals import Measure
from ..evaluation.suite import Figures
from .arguments import ComparisonArguments
from .measure import Evaluation, short_name
from .results import difference, mean_and_std, number, with_means, without_means
from .runs import Run


# A share of repeated captions below this is not worth a word.
MENTIONED_SHARE = 0.02


def compare(
    args: ComparisonArguments,
    runs: list[Run],
    evaluations: list[Evaluation],
    measured: dict[Run, dict[str, dict[str, Figures]]],
    command: str,
) -> dict:
    r"""
    Args:
        args ([`ComparisonArguments`]):
            What was asked for.
        runs (`list[Run]`):
            The trainings.
        evaluations (`list[Evaluation]`):
            The measurements.
        measured (`dict`):
            Figures by training, evaluation, protocol and name.
        command (`str`):
            What was run.

    Returns:
        `dict`: how it was done, what it cost, and in `results`, by evaluation, protocol, name of the figure and arm, the
        `seeds`, their `mean` and `std`, the number of test `items` where the figure is a mean over them, and the
        `difference` to the baseline. In a sweep the baseline is that with the same value, where it has one.
    """
    entries: dict = {}
    shifted = {shift.name: short_name(shift) for evaluation in evaluations for shift in evaluation.data.shifts}

    def add(condition: str, evaluation: str, figures_by_task: dict[str, Figures]) -> None:
        for task, figures in figures_by_task.items():
            for name, figure in figures.items():
                for shift, short in shifted.items():
                    name = name.replace(shift, short)
                by_arm = entries.setdefault(evaluation, {}).setdefault(task, {}).setdefault(name, {})
                by_arm.setdefault(condition, []).append(figure)

    conditions = {run.condition for run in runs}
    baselines, cost = {}, {}
    for run in runs:
        if run.arm != args.baseline:
            same_value = f"{args.baseline} at {run.value}"
            baselines[run.condition] = same_value if same_value in conditions else args.baseline
        cost.setdefault(run.condition, []).append(run.cost())
        for evaluation, figures_by_task in measured[run].items():
            add(run.condition, evaluation, with_means(figures_by_task))
    if args.center:
        for run in (run for run in runs if run.arm == args.baseline):
            condition = f"{run.condition}, means removed"
            baselines[condition] = run.condition
            for evaluation, figures_by_task in measured[run].items():
                add(condition, evaluation, without_means(figures_by_task))

    results = {
        evaluation: {
            task: {name: _by_arm(by_arm, baselines) for name, by_arm in by_name.items()}
            for task, by_name in by_task.items()
        }
        for evaluation, by_task in entries.items()
    }
    record = json.loads((runs[0].folder / "run.json").read_text())
    return {
        "command": command,
        "recipe": args.recipe,
        "overrides": args.overrides,
        "arms": args.arms,
        "seeds": args.seeds,
        "swept": dict.fromkeys(args.sweep_arguments, args.sweep_values),
        "evaluations": {evaluation.name: evaluation.arguments for evaluation in evaluations},
        **{name: record[name] for name in ("training_pairs", "hardware", "environment", "commit")},
        "notes": _notes(runs[0]),
        "cost": cost,
        "results": results,
    }


def _by_arm(figures: dict[str, list[Measure | float]], baselines: dict[str, str]) -> dict[str, dict]:
    """One figure of every arm: all seeds, their mean and deviation, and the difference to the baseline."""
    by_arm = {}
    for arm, by_seed in figures.items():
        mean, std = mean_and_std(by_seed)
        by_arm[arm] = {"seeds": [number(figure) for figure in by_seed], "mean": mean, "std": std}
        if isinstance(by_seed[0], Measure):
            by_arm[arm]["items"] = len(by_seed[0])
        if (baseline := baselines.get(arm)) in figures:
            differs = difference(by_seed, figures[baseline])
            by_arm[arm]["difference"] = {
                "to": baseline,
                "value": differs.value,
                "items_interval": differs.items,
                "seeds_interval": differs.seeds,
                "verdict": differs.verdict,
            }
    return by_arm


def _notes(run: Run) -> list[str]:
    shares = [entry["repeated_captions"] for entry in run.log_history() if "repeated_captions" in entry]
    if not shares or (share := sum(shares) / len(shares)) < MENTIONED_SHARE:
        return []
    return [
        f"{100 * share:.0f} % of the captions of a training batch repeat another one of it. Each counts as a negative of "
        "its equals, which no objective can tell apart: no ground for a claim about objectives on natural captions."
    ]
