"""What an evaluation measures and how: all that shapes a figure, for results.json."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from ..run_record import commit, hardware, versions
from .arguments import DataArguments, EvaluationArguments
from .content import digest, image_digests, sample
from .evaluation_set import EvaluationSet
from .report import BY_CLASSES, BY_REFERENCES, SHAPING, command_line


def told(*arguments: Any) -> dict[str, Any]:
    """The arguments that differ from their defaults."""
    values = {}
    for one in arguments:
        for field in fields(one):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if (value := getattr(one, field.name)) != default:
                values[field.name] = value
    return values


def setting(data_args: DataArguments, args: EvaluationArguments, data: EvaluationSet) -> dict[str, str]:
    """
    What was measured and how, as far as it differs from the defaults: the arguments of `SHAPING` in words. Two measurements
    of one set are the same only where it is. Templates count by their content, and so do classes that are the distinct
    values of a string column, since these depend on all splits.
    """
    found = {name: value for name, value in told(data_args, args).items() if name in SHAPING}
    if found.get("train_split") == data.benchmark.train_split:
        found.pop("train_split", None)
    if data_args.templates is not None:
        found["templates"] = f"{Path(data_args.templates).stem} {digest(data.templates)[:8]}"
    if args.baseline_points is not None:
        found["baseline_points"] = f"{Path(args.baseline_points).stem} {digest(data.shifts[0].baseline_line)[:8]}"
    if data.pooled_classes:
        found["classes"] = f"{len(data.class_names)} {digest(data.class_names)[:8]}"
    if shifted := found.get("shift_datasets"):
        found["shift_datasets"] = [Path(name).name if Path(name).exists() else name for name in shifted]
    return {name: " ".join(value) if isinstance(value, list) else str(value) for name, value in found.items()}


def content(data: EvaluationSet) -> dict[str, Any]:
    """How much the measured data hold, with a digest of each part, by which other data show."""
    images = {"images": data, "reference images": data.train}
    images |= {f"images of {shift.name}": shift for shift in data.shifts}
    found = {
        name: {"number": len(one.dataset), "digest": digest(image_digests(sample(one.dataset)))}
        for name, one in images.items()
        if one is not None
    }
    parts = {
        "labels": None if data.labels is None else data.labels.tolist(),
        "class names": data.class_names,
        "templates": None if data.labels is None else data.templates,
        "captions": data.captions,
        "superclasses": None if data.superclasses is None else data.superclasses.tolist(),
    }
    return found | {
        name: {"number": len(part), "digest": digest(part)} for name, part in parts.items() if part is not None
    }


def measurement(
    data_args: DataArguments,
    args: EvaluationArguments,
    data: EvaluationSet,
    fingerprints: Mapping[str, str],
    device: torch.device,
    num_processes: int,
) -> dict[str, Any]:
    """The head of results.json: everything that shapes a figure. `fingerprints` are those of the checkpoints."""
    arguments = told(data_args, args)
    sets = {"test": data, **({} if data.train is None else {"reference": data.train})}
    sets |= {shift.name: shift for shift in data.shifts}
    return {
        "data": data.name,
        "reference data": None if data.train is None else data.train.name,
        "shifted data": [shift.name for shift in data.shifts],
        "setting": setting(data_args, args, data),
        "content": content(data),
        "revisions": {name: one.commit for name, one in sets.items() if one.commit is not None},
        "broken images left out": {name: one.num_broken for name, one in sets.items() if one.num_broken},
        "test images among the reference images": dict(zip(("found", "looked for"), data.shared or (), strict=False)),
        "notes": [*data.notes],
        "metric of the paper": data.benchmark.metric,
        "checkpoints": dict(fingerprints),
        "precision": args.dtype,
        "seed": args.seed,
        "command": command_line(arguments),
        "arguments": arguments,
        "processes": num_processes,
        "hardware": hardware(device),
        "environment": versions(),
        "commit": commit(),
    }


def limits(data: EvaluationSet) -> dict[str, dict[str, float]]:
    """
    By task, what its figures leave out or should not have seen: `left_out`, the number of images that could not be opened,
    and `shared`, the share of the test images that are among the reference images.
    """
    left_out = dict.fromkeys((*BY_CLASSES, "retrieval", "winoground"), data.num_broken)
    left_out["shift"] += sum(shift.num_broken for shift in data.shifts)
    for task in BY_REFERENCES:
        left_out[task] += 0 if data.train is None else data.train.num_broken
    found = {task: {"left_out": number} for task, number in left_out.items() if number}
    if data.shared is not None and data.shared[0]:
        for task in BY_REFERENCES:
            found.setdefault(task, {})["shared"] = data.shared[0] / data.shared[1]
    return found
