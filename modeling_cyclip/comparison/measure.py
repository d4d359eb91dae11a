"""
Measures the trained checkpoints of a comparison by the protocols of evaluation/ and keeps the score of every test item.
Compares all of it over seeds, and against the baseline on the same test items.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets.fingerprint import Hasher
from safetensors import safe_open
from scipy.stats import t
from transformers import HfArgumentParser

from ..evaluation.arguments import DataArguments, EvaluationArguments
from ..evaluation.embeddings import EmbeddedSet, embed_all, images_fingerprint, save_whole
from ..evaluation.evaluation_set import EvaluationSet, load_data
from ..evaluation.intervals import Measure
from ..evaluation.protocols import Figures, Protocol, choose_protocols, with_checked_references
from ..evaluation.protocols import measure as measure_embedded
from ..evaluation.report import CENTRED
from ..health import collapsed, nothing_learnt, signs_at_the_end
from .runs import ComparisonArguments, Run, slug


# The comparison sets these itself, or they have no effect in it.
RESERVED = ("model_name_or_path", "output_dir", "compare_to", "center", "plots")

# The messages of the signs that a training shows, by the sign of [`~modeling_cyclip.health`].
Signs = dict[Callable | None, str]


@dataclass(frozen=True)
class Evaluation:
    """One of the measurements that every checkpoint goes through."""

    name: str
    arguments: dict  # of `cyclip evaluate`
    args: EvaluationArguments  # the same, parsed
    data: EvaluationSet
    protocols: dict[str, Protocol]


def load_evaluations(args: ComparisonArguments) -> list[Evaluation]:
    """Checks the arguments and opens all data that is measured, before anything is trained."""
    evaluations = []
    for name, arguments in args.evaluations.items():
        if not isinstance(arguments, dict):
            raise ValueError(f"The evaluation {name} must map arguments of cyclip evaluate to values.")
        if taken := sorted(set(arguments) & set(RESERVED)):
            raise ValueError(f"A comparison takes no {taken[0]} for an evaluation; leave it out of {name}.")
        arguments = {**arguments, "center": args.center}
        parser = HfArgumentParser((DataArguments, EvaluationArguments))
        try:
            data_args, evaluation_args = parser.parse_dict({**arguments, "model_name_or_path": "", "output_dir": ""})
            data = load_data(data_args, evaluation_args.baseline_points)
            protocols = choose_protocols(evaluation_args.tasks, data)
            data = with_checked_references(data, protocols)
        except (TypeError, ValueError) as error:
            raise ValueError(f"evaluation {name}: {error}") from error
        shifts = [short_name(shift) for shift in data.shifts]
        if len(set(shifts)) < len(shifts):
            raise ValueError(
                f"evaluation {name}: shifted sets need different names, got {', '.join(shifts)}. Rename a folder."
            )
        evaluations.append(Evaluation(name, arguments, evaluation_args, data, protocols))
    class_names = evaluations[0].data.class_names or []
    if unknown := [name for name in args.plane_classes if name not in class_names]:
        raise ValueError(f"--plane_classes: {evaluations[0].name} has no class {unknown[0]}.")
    return evaluations


def short_name(data: EvaluationSet) -> str:
    """The name of a set in reports: without the folders it lies in."""
    return Path(data.name).name


def measure(run: Run, evaluation: Evaluation) -> dict[str, Figures]:
    """Figures by protocol, measured once and kept. Means over test items come with the score of every item."""
    path = run.folder / "evaluation" / f"{slug(evaluation.name)}.safetensors"
    said = json.dumps({**evaluation.arguments, "data": _fingerprint(evaluation.data)}, sort_keys=True)
    if not path.is_file() or (kept := _read(path, said)) is None:
        _write(path, said, measure_embedded(embeddings(run, evaluation), evaluation.protocols, evaluation.args.center))
        # What is read lies on the CPU, like the kept figures of other trainings that it is compared to.
        kept = _read(path, said)
    return kept


def embeddings(run: Run, evaluation: Evaluation) -> EmbeddedSet:
    """The test set as the run's checkpoint sees it."""
    args = replace(evaluation.args, output_dir=str(run.folder / "evaluation"))
    return embed_all(str(run.folder), evaluation.data, args, PartialState())


def _fingerprint(data: EvaluationSet) -> str:
    """Changes with all that is read from files."""
    sets = [
        (images_fingerprint(part.dataset), part.class_names, part.templates)
        for part in (data, data.train, *data.shifts)
        if part is not None
    ]
    lines = [(shift.name, astuple(shift.baseline_line)) for shift in data.shifts if shift.baseline_line is not None]
    return Hasher.hash((sets, sorted(lines)))


def _write(path: Path, arguments: str, results: dict[str, Figures]) -> None:
    numbers: dict[str, dict[str, float | None]] = {}
    tensors = {}
    for task, figures in results.items():
        numbers[task] = {name: None if isinstance(one, Measure) else float(one) for name, one in figures.items()}
        for name, figure in figures.items():
            for part in ("scores", "classes") if isinstance(figure, Measure) else ():
                if (tensor := getattr(figure, part)) is not None:
                    # A copy: safetensors refuses tensors that share memory, as the labels of several figures do.
                    tensors[f"{task}/{name}/{part}"] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    save_whole(tensors, path, {"arguments": arguments, "figures": json.dumps(numbers)})


def _read(path: Path, arguments: str) -> dict[str, Figures] | None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata["arguments"] != arguments:
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    results = json.loads(metadata["figures"])
    for task, figures in results.items():
        for name in [name for name, number in figures.items() if number is None]:
            figures[name] = Measure(tensors[f"{task}/{name}/scores"], tensors.get(f"{task}/{name}/classes"))
    return results


@dataclass(frozen=True)
class Difference:
    """A figure of an arm minus the baseline's, the mean over seeds."""

    value: float
    # 95 % bootstrap interval under resampling of the test items, paired: both arms on the same items. It holds for these
    # trained models. `None` for figures that are no mean over items.
    items: tuple[float, float] | None
    # 95 % interval of the difference of trainings with other seeds, by Student's t. `None` with a single seed.
    seeds: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """What may be concluded from it, in words."""
        direction = "higher" if self.value > 0 else "lower"
        if self.items is not None and self.items[0] <= 0 <= self.items[1]:
            return "no difference shown: the interval over test items includes zero"
        if self.seeds is None:
            return f"{direction} with this one seed, which says nothing of the next"
        if self.seeds[0] <= 0 <= self.seeds[1]:
            return f"{direction} for these models, but no difference shown: the interval over seeds includes zero"
        return direction


def number(figure: Measure | float) -> float:
    return figure.value if isinstance(figure, Measure) else figure


def mean_and_std(figures: Sequence[Measure | float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample) over seeds; a single seed has no deviation."""
    numbers = [number(figure) for figure in figures]
    return float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def difference(figures: Sequence[Measure | float], baseline: Sequence[Measure | float], seed: int = 0) -> Difference:
    """A figure of one arm, by seed, minus the same of the baseline with the same seeds. `seed` is that of the resampling."""
    items = None
    if isinstance(figures[0], Measure):
        by_seed = [figure.minus(other) for figure, other in zip(figures, baseline, strict=True)]
        scores = torch.stack([measure.scores for measure in by_seed]).mean(dim=0)
        items = Measure(scores, by_seed[0].classes).interval(seed=seed)
    differences = [number(figure) - number(other) for figure, other in zip(figures, baseline, strict=True)]
    mean, std = mean_and_std(differences)
    seeds = None
    if std is not None:
        half = float(t.ppf(0.975, len(differences) - 1)) * std / math.sqrt(len(differences))
        seeds = (mean - half, mean + half)
    return Difference(mean, items, seeds)


def without_means(results: dict[str, dict]) -> dict[str, dict]:
    """The results of centred embeddings alone, under the protocols' own names."""
    return {task.removesuffix(CENTRED): figures for task, figures in results.items() if task.endswith(CENTRED)}


def with_means(results: dict[str, dict]) -> dict[str, dict]:
    """The results of the embeddings as they are, without those of centred ones."""
    return {task: figures for task, figures in results.items() if not task.endswith(CENTRED)}


def compare(
    args: ComparisonArguments,
    runs: list[Run],
    evaluations: list[Evaluation],
    measured: dict[Run, dict[str, dict[str, Figures]]],
    command: str,
) -> dict:
    """
    The content of results.json: how it was done, what it cost, and in `results`, by evaluation, protocol, name of the
    figure and arm, the figure of all `seeds`, their `mean` and `std`, the number of test `items` where the figure is a
    mean over them, and the `difference` to the baseline. `health` holds the messages of trainings that went wrong, by arm;
    an arm that did not train gets no other verdict than that. In a sweep the baseline is that with the same value, where it
    has one. `measured` holds figures by training, evaluation, protocol and name.
    """
    entries: dict[tuple[str, str, str], dict[str, list[Measure | float]]] = {}
    shifted = {shift.name: short_name(shift) for evaluation in evaluations for shift in evaluation.data.shifts}

    def add(condition: str, evaluation: str, figures_by_task: dict[str, Figures]) -> None:
        for task, figures in figures_by_task.items():
            for name, figure in figures.items():
                for shift, short in shifted.items():
                    name = name.replace(shift, short)
                entries.setdefault((evaluation, task, name), {}).setdefault(condition, []).append(figure)

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

    by_condition: dict[str, list[tuple[Run, Signs]]] = {}
    for run in runs:
        by_condition.setdefault(run.condition, []).append((run, _signs(run)))
    health = {condition: notes for condition, own in by_condition.items() if (notes := _health(own))}
    untrained = {condition: why for condition, own in by_condition.items() if (why := _untrained(own)) is not None}
    untrained |= {arm: untrained[of] for arm, of in baselines.items() if arm not in by_condition and of in untrained}
    results: dict[str, dict[str, dict[str, dict]]] = {}
    for (evaluation, task, name), by_arm in entries.items():
        results.setdefault(evaluation, {}).setdefault(task, {})[name] = _by_arm(by_arm, baselines, untrained)
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
        "health": health,
        "notes": [note for notes in (_notes(runs[0]), *map(_shared, evaluations)) for note in notes],
        "cost": cost,
        "results": results,
    }


def _by_arm(
    figures: dict[str, list[Measure | float]], baselines: dict[str, str], untrained: dict[str, str]
) -> dict[str, dict]:
    """
    One figure of every arm: its values by seed, their mean and deviation, and the difference to the baseline. `untrained`
    says of arms why they did not train.
    """
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
                "verdict": untrained.get(baseline) or untrained.get(arm) or differs.verdict,
            }
    return by_arm


def _signs(run: Run) -> Signs:
    """The signs in the log of a training and their messages."""
    log_history = run.log_history()
    if not any("contrastive_loss" in log for log in log_history):
        return {None: "No loss was logged, so that it is not known whether it trained. Set lower `logging_steps`."}
    return signs_at_the_end(log_history, run.batch_size())


def _health(trainings: list[tuple[Run, Signs]]) -> list[str]:
    """What the logs of an arm's trainings show, each sign once and with its seeds."""
    messages, seeds = {}, {}
    for run, signs in trainings:
        for sign, message in signs.items():
            messages.setdefault(sign, message)
            seeds.setdefault(sign, []).append(str(run.seed))
    condition = trainings[0][0].condition
    return [f"{condition}, seed {', '.join(seeds[sign])}: {message}" for sign, message in messages.items()]


def _untrained(trainings: list[tuple[Run, Signs]]) -> str | None:
    """Why an arm did not train, and what to do about it, if so."""
    failed = [(run, signs) for run, signs in trainings if nothing_learnt in signs or collapsed in signs]
    if not failed:
        return None
    first, signs = failed[0]
    # Their messages go on with causes that may not be those of this arm.
    reason = (signs.get(nothing_learnt) or signs[collapsed]).partition(" Likely causes")[0].rstrip(".")
    reason = reason[0].lower() + reason[1:]
    which = f" with seed {', '.join(str(run.seed) for run, _ in failed)}" if len(failed) < len(trainings) else ""
    return f"{first.condition} did not train{which}: {reason}, {first.advice()}"


def _shared(evaluation: Evaluation) -> list[str]:
    found, looked_for = evaluation.data.shared or (0, 0)
    told = f"{evaluation.name}: {found:,} of {looked_for:,} test images are among the reference images."
    return [told] if found else []


def _notes(run: Run) -> list[str]:
    shares = [entry["repeated_captions"] for entry in run.log_history() if "repeated_captions" in entry]
    # A share below 2 % is not worth a mention.
    if not shares or (share := sum(shares) / len(shares)) < 0.02:
        return []
    return [
        f"{100 * share:.0f} % of the captions of a training batch repeat another one of it. Each counts as a negative of "
        "its equals, which no objective can tell apart: no ground for a claim about objectives on natural captions."
    ]
