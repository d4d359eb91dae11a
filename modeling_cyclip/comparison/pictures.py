"""Which pictures a comparison gets, and their captions."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..evaluation.plots import save
from ..evaluation.suite import EmbeddedSet, first_captions
from . import plots
from .figures import describe_figure, main_figures, swept_curves
from .measure import Evaluation, embeddings, short_name
from .runs import Run, slug


MAX_ARMS_OF_EMBEDDINGS = 4
PLANE_CLASSES = 6


def draw_pictures(
    output_dir: Path,
    results: dict,
    runs: list[Run],
    evaluations: list[Evaluation],
    plane_classes: list[str],
) -> list[tuple[str, Path]]:
    r"""
    Args:
        output_dir (`Path`):
            Folder of the report.
        results (`dict`):
            What [`compare`] returns.
        runs (`list[Run]`):
            The trainings.
        evaluations (`list[Evaluation]`):
            The measurements.
        plane_classes (`list[str]`):
            Classes to draw in the plane; none takes those with most images.

    Returns:
        `list[tuple(str, Path)]`: captions and PNG files.
    """
    folder = output_dir / "plots"
    if results["swept"]:
        return _sweeps(folder, results)
    pictures = [
        (
            "The main figures; dots are seeds, lines one standard deviation over them.",
            save(plots.bars(results), folder / "bars"),
        )
    ]
    if (histories := _histories(runs)) is not None:
        curves = save(plots.training_curves(histories), folder / "training_curves")
        pictures.append(("The three parts of the loss in training, cyclic terms without their weights.", curves))
    for evaluation in evaluations:
        for shift in evaluation.data.shifts if "shift" in evaluation.protocols else ():
            shifted = short_name(shift)
            scatter = plots.robustness(results["results"][evaluation.name]["shift"], shifted)
            path = save(scatter, folder / f"robustness-{slug(evaluation.name)}-{slug(shifted)}")
            caption = (
                f"Accuracy under shift against accuracy without, {shifted}. The line is fitted to the baseline's seeds alone, "
                "and means little where they lie close together."
            )
            pictures.append((caption, path))
    return pictures + _of_embeddings(folder, runs, evaluations[0], plane_classes)


def _histories(runs: list[Run]) -> dict[str, list[list[dict]]] | None:
    """By arm and seed what was logged; `None` where there are not two steps of it to draw a line through."""
    histories: dict[str, list[list[dict]]] = {}
    for run in runs:
        steps = [entry for entry in run.log_history() if "contrastive_loss" in entry]
        histories.setdefault(run.arm, []).append(steps)
    shortest = min(len(log) for by_seed in histories.values() for log in by_seed)
    return histories if shortest > 1 else None


def _of_embeddings(
    folder: Path, runs: list[Run], evaluation: Evaluation, plane_classes: list[str]
) -> list[tuple[str, Path]]:
    """Similarity matrices, and classes in the plane, of the first seed's models."""
    first_seed = [run for run in runs if run.seed == runs[0].seed][:MAX_ARMS_OF_EMBEDDINGS]
    embedded = {run.arm: embeddings(run, evaluation).test for run in first_seed}
    one = next(iter(embedded.values()))
    generator = torch.Generator().manual_seed(evaluation.args.seed)
    chosen = torch.randperm(len(one.image_embeds), generator=generator)[: plots.MATRIX_SAMPLES].sort().values
    if one.labels is None:
        names = [one.data.captions[index][0] for index in chosen.tolist()]
        matrices = {arm: (e.image_embeds[chosen], first_captions(e)[chosen]) for arm, e in embedded.items()}
    else:
        names = [one.data.class_names[label] for label in one.labels[chosen].tolist()]
        matrices = {arm: (e.image_embeds[chosen], e.class_embeds[e.labels[chosen]]) for arm, e in embedded.items()}
    path = save(plots.similarity_matrices(matrices, names), folder / "similarities")
    pictures = [(f"Cosines of the same {len(names)} test images and their texts.", path)]
    if one.labels is not None:
        classes = _plane_classes(one, plane_classes)
        points = {arm: _of_classes(e, classes) for arm, e in embedded.items()}
        path = save(plots.plane(points, [one.data.class_names[index] for index in classes]), folder / "plane")
        pictures.append(("Images and class texts (stars) in the two directions in which they vary most.", path))
    return pictures


def _plane_classes(embedded: EmbeddedSet, names: list[str]) -> list[int]:
    if not names:
        counts = torch.bincount(embedded.labels, minlength=len(embedded.class_embeds))
        return counts.argsort(descending=True, stable=True)[:PLANE_CLASSES].tolist()
    return [embedded.data.class_names.index(name) for name in names]


def _of_classes(embedded: EmbeddedSet, classes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Up to 60 images of each class, their positions in `classes`, and the classes' texts."""
    rows, positions = [], []
    for position, label in enumerate(classes):
        own = (embedded.labels == label).nonzero()[:60, 0]
        rows.append(own)
        positions.append(torch.full_like(own, position))
    return embedded.image_embeds[torch.cat(rows)], torch.cat(positions), embedded.class_embeds[classes]


def _sweeps(folder: Path, results: dict) -> list[tuple[str, Path]]:
    label, pictures = ", ".join(results["swept"]), []
    for evaluation, tasks in results["results"].items():
        for task, name, by_arm in main_figures(tasks):
            measured = describe_figure(evaluation, task, name)
            figure = Figure(figsize=(6, 4.2), layout="constrained")
            plots.sweep(figure.subplots(), *swept_curves(results, by_arm), label, measured)
            pictures.append((f"{measured}, by {label}.", save(figure, folder / f"sweep-{len(pictures)}")))
    return pictures
