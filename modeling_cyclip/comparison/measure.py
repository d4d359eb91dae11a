"""Measures the trained checkpoints of a comparison by the protocols of evaluation/, and keeps the score of every test item."""

import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets.fingerprint import Hasher
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import HfArgumentParser

from ..evaluation.arguments import DataArguments, EvaluationArguments
from ..evaluation.encoder import images_fingerprint
from ..evaluation.evaluation_set import EvaluationSet
from ..evaluation.intervals import Measure
from ..evaluation.steps import EvaluationData, embed_all, load_data, run_protocols
from ..evaluation.suite import EmbeddedSets, Figures, Protocol, choose_protocols
from .arguments import ComparisonArguments
from .runs import Run, slug


# Given by the comparison itself, or of no effect in it.
RESERVED = ("model_name_or_path", "output_dir", "compare_to", "center", "plots")


@dataclass(frozen=True)
class Evaluation:
    r"""
    One of the measurements that every checkpoint goes through.

    Args:
        name (`str`):
            What the report calls it.
        arguments (`dict`):
            Arguments of run_evaluation.py.
        args ([`EvaluationArguments`]):
            The same, parsed.
        data ([`EvaluationData`]):
            Test set, reference images and shifts.
        protocols (`dict[str, Protocol]`):
            Protocols by name.
    """

    name: str
    arguments: dict
    args: EvaluationArguments
    data: EvaluationData
    protocols: dict[str, Protocol]


def load_evaluations(args: ComparisonArguments) -> list[Evaluation]:
    r"""
    Opens all that is measured, before anything is trained.

    Raises:
        `ValueError`: arguments that run_evaluation.py would not take, or data that cannot be opened.
    """
    evaluations = []
    for name, arguments in args.evaluations.items():
        if not isinstance(arguments, dict):
            raise ValueError(f"The evaluation {name} must map arguments of run_evaluation.py to values.")
        if taken := sorted(set(arguments) & set(RESERVED)):
            raise ValueError(f"A comparison takes no {taken[0]} for an evaluation; leave it out of {name}.")
        arguments = {**arguments, "center": args.center}
        parser = HfArgumentParser((DataArguments, EvaluationArguments))
        try:
            data_args, evaluation_args = parser.parse_dict({**arguments, "model_name_or_path": "", "output_dir": ""})
            data = load_data(data_args, evaluation_args.baseline_points)
            protocols = choose_protocols(evaluation_args.tasks, data.test, data.train, data.shifts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"evaluation {name}: {error}") from error
        shifts = [short_name(shift) for shift in data.shifts]
        if len(set(shifts)) < len(shifts):
            raise ValueError(
                f"evaluation {name}: shifted sets need different names, got {', '.join(shifts)}. Rename a folder."
            )
        evaluations.append(Evaluation(name, arguments, evaluation_args, data, protocols))
    class_names = evaluations[0].data.test.class_names or []
    if unknown := [name for name in args.plane_classes if name not in class_names]:
        raise ValueError(f"--plane_classes: {evaluations[0].name} has no class {unknown[0]}.")
    return evaluations


def short_name(data: EvaluationSet) -> str:
    """What a set is called in reports: without the folders it lies in."""
    return Path(data.name).name


def measure(run: Run, evaluation: Evaluation) -> dict[str, Figures]:
    """Figures by protocol; those that are means over test items with the score of every item. Measured once and kept."""
    path = run.folder / "evaluation" / f"{slug(evaluation.name)}.safetensors"
    said = json.dumps({**evaluation.arguments, "data": _fingerprint(evaluation.data)}, sort_keys=True)
    if not path.is_file() or (kept := _read(path, said)) is None:
        _write(path, said, run_protocols(evaluation.protocols, embeddings(run, evaluation), evaluation.args.center))
        # What is read lies on the CPU, like the kept figures that it is compared to.
        kept = _read(path, said)
    return kept


def embeddings(run: Run, evaluation: Evaluation) -> EmbeddedSets:
    """All sets as the run's checkpoint sees them."""
    args = replace(evaluation.args, output_dir=str(run.folder / "evaluation"))
    return embed_all(str(run.folder), evaluation.data, args, PartialState())


def _fingerprint(data: EvaluationData) -> str:
    """Changes with all that is read from files."""
    sets = [
        (images_fingerprint(part.dataset), part.class_names, part.templates)
        for part in (data.test, data.train, *data.shifts)
        if part is not None
    ]
    return Hasher.hash((sets, sorted((name, astuple(line)) for name, line in data.lines.items())))


def _write(path: Path, arguments: str, results: dict[str, Figures]) -> None:
    numbers: dict[str, dict[str, float | None]] = {}
    tensors = {}
    for task, figures in results.items():
        numbers[task] = {}
        for name, figure in figures.items():
            if not isinstance(figure, Measure):
                numbers[task][name] = float(figure)
                continue
            numbers[task][name] = None
            for part in ("scores", "classes"):
                if (tensor := getattr(figure, part)) is not None:
                    # A copy: safetensors refuses tensors that share memory, as the labels of several figures do.
                    tensors[f"{task}/{name}/{part}"] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"arguments": arguments, "figures": json.dumps(numbers)})
    partial.replace(path)


def _read(path: Path, arguments: str) -> dict[str, Figures] | None:
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        if metadata["arguments"] != arguments:
            return None

        def figure(task: str, name: str, number: float | None) -> Measure | float:
            if number is not None:
                return number
            classes = f"{task}/{name}/classes"
            scores: torch.Tensor = file.get_tensor(f"{task}/{name}/scores")
            return Measure(scores, file.get_tensor(classes) if classes in names else None)

        return {
            task: {name: figure(task, name, number) for name, number in figures.items()}
            for task, figures in json.loads(metadata["figures"]).items()
        }
