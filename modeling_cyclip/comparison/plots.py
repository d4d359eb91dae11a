"""Pictures of a comparison. Arms differ in colour (Okabe and Ito, 2008), marker and hatch, so that print shows them, too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from ..evaluation.embeddings import EmbeddedSet, first_captions
from ..evaluation.plots import save, short
from ..evaluation.zero_shot import fit_line
from .measure import Evaluation, embeddings, short_name
from .report import describe_figure, main_figures, swept_curves
from .runs import Run, slug


COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
LOSS_PARTS = {
    "contrastive_loss": "contrastive",
    "inmodal_cyclic_loss": "in-modal, unweighted",
    "crossmodal_cyclic_loss": "cross-modal, unweighted",
}


def draw_pictures(
    output_dir: Path, results: dict, runs: list[Run], evaluations: list[Evaluation], plane_classes: list[str]
) -> list[tuple[str, Path]]:
    """
    Captions and PNG files of all pictures that a report shows; `results` are what [`compare`] returns. Without
    `plane_classes` the six with most images are drawn in the plane.
    """
    folder = output_dir / "plots"
    if results["swept"]:
        return _sweeps(folder, results)
    path = save(bars(results), folder / "bars")
    pictures = [("The main figures; dots are seeds, lines one standard deviation over them.", path)]
    histories: dict[str, list[list[dict]]] = {}
    for run in runs:
        steps = [entry for entry in run.log_history() if "contrastive_loss" in entry]
        histories.setdefault(run.arm, []).append(steps)
    # A line takes two steps.
    if min(len(log) for by_seed in histories.values() for log in by_seed) > 1:
        curves = save(training_curves(histories, setting_of(results)), folder / "training_curves")
        pictures.append(("The three parts of the loss in training, cyclic terms without their weights.", curves))
    for evaluation in evaluations:
        for shift in evaluation.data.shifts if "shift" in evaluation.protocols else ():
            shifted = short_name(shift)
            scatter = robustness(results["results"][evaluation.name]["shift"], shifted, setting_of(results))
            path = save(scatter, folder / f"robustness-{slug(evaluation.name)}-{slug(shifted)}")
            caption = (
                f"Accuracy under shift against accuracy without, {shifted}. The line is fitted to the baseline's seeds alone, "
                "and means little where they lie close together."
            )
            pictures.append((caption, path))
    return pictures + _of_embeddings(folder, runs, evaluations[0], plane_classes)


def setting_of(results: dict) -> str:
    """What all trainings of a comparison share, for the title of a picture."""
    recipe, data = Path(results["recipe"]).stem, results["overrides"].get("dataset_name")
    trained_on = recipe if data is None else f"{Path(data).name} by the recipe {recipe}"
    return f"{trained_on}, {_seeds(results['seeds'])}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _of_embeddings(
    folder: Path, runs: list[Run], evaluation: Evaluation, plane_classes: list[str]
) -> list[tuple[str, Path]]:
    """Similarity matrices, and classes in the plane, of the first seed's models: four at most."""
    first_seed = [run for run in runs if run.seed == runs[0].seed][:4]
    embedded = {run.arm: embeddings(run, evaluation) for run in first_seed}
    one = next(iter(embedded.values()))
    generator = torch.Generator().manual_seed(evaluation.args.seed)
    # More than 24 samples make cells too small to see.
    chosen = torch.randperm(len(one.image_embeds), generator=generator)[:24].sort().values
    if one.labels is not None:
        chosen = chosen[one.labels.cpu()[chosen].argsort(stable=True)]
    setting = f"{evaluation.name}, {_seeds([runs[0].seed])}"
    if one.labels is None:
        names = [one.data.captions[index][0] for index in chosen.tolist()]
        matrices = {arm: (e.image_embeds[chosen], first_captions(e)[chosen]) for arm, e in embedded.items()}
    else:
        names = [one.data.class_names[label] for label in one.labels[chosen].tolist()]
        matrices = {arm: (e.image_embeds[chosen], e.class_embeds[e.labels[chosen]]) for arm, e in embedded.items()}
    path = save(similarity_matrices(matrices, names, setting), folder / "similarities")
    pictures = [(f"Cosines of the same {len(names)} test images and their texts.", path)]
    if one.labels is not None:
        classes = [one.data.class_names.index(name) for name in plane_classes]
        if not classes:
            counts = torch.bincount(one.labels, minlength=len(one.class_embeds))
            classes = counts.argsort(descending=True, stable=True)[:6].tolist()
        path = save(plane(embedded, classes, setting), folder / "plane")
        pictures.append(("Images and class texts (stars) in the two directions in which they vary most.", path))
    return pictures


def _sweeps(folder: Path, results: dict) -> list[tuple[str, Path]]:
    label, pictures = ", ".join(results["swept"]), []
    for evaluation, tasks in results["results"].items():
        for task, name, by_arm in main_figures(tasks):
            measured = describe_figure(evaluation, task, name)
            figure = Figure(figsize=(6, 4.2), layout="constrained")
            axes = figure.subplots()
            sweep(axes, *swept_curves(results, by_arm), label, measured)
            axes.set_title(setting_of(results), fontsize=11)
            pictures.append((f"{measured}, by {label}.", save(figure, folder / f"sweep-{len(pictures)}")))
    return pictures


def training_curves(histories: dict[str, list[list[dict]]], setting: str) -> Figure:
    """
    The three parts of the loss by step, from what the Trainer has logged, by arm and seed. Thin lines are seeds, thick ones
    their mean.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(setting, fontsize=11)
    for axes, (name, title) in zip(figure.subplots(1, 3), LOSS_PARTS.items(), strict=True):
        for index, (arm, by_seed) in enumerate(histories.items()):
            curves = [[(entry["step"], entry[name]) for entry in history if name in entry] for history in by_seed]
            shortest = min(map(len, curves))
            steps, losses = np.array([curve[:shortest] for curve in curves]).transpose(2, 0, 1)
            for seed_losses in losses if len(losses) > 1 else ():
                axes.plot(steps[0], seed_losses, color=COLOURS[index], linewidth=0.4, alpha=0.5)
            axes.plot(
                steps[0], losses.mean(axis=0), color=COLOURS[index], linewidth=1.4, label=arm,
                marker=MARKERS[index], markevery=max(1, shortest // 6), markersize=4,
            )  # fmt: skip
        # The cyclic terms fall by orders of magnitude, the contrastive one does not.
        axes.set(title=title, xlabel="step", yscale="linear" if name == "contrastive_loss" else "log")
        if name != "contrastive_loss":
            _readable_log(axes)
        _plain(axes)
    # Below the curves: among them it would cover some.
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _readable_log(axes: Axes) -> None:
    """Ticks in plain numbers, several of them where the axis spans less than a factor of a hundred."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def bars(results: dict) -> Figure:
    """The main figures of a results.json; a line is one standard deviation over seeds, dots are the seeds."""
    rows = [
        (describe_figure(evaluation, task, name).replace(", ", "\n", 1), by_arm)
        for evaluation, tasks in results["results"].items()
        for task, name, by_arm in main_figures(tasks)
    ]
    arms = list(dict.fromkeys(arm for _, by_arm in rows for arm in by_arm))
    figure = Figure(figsize=(8, 1.4 + (0.35 + 0.17 * len(arms)) * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.84 / len(arms)
    for index, arm in enumerate(arms):
        places = [(row, by_arm[arm]) for row, (_, by_arm) in enumerate(rows) if arm in by_arm]
        positions = [row + (index - (len(arms) - 1) / 2) * height for row, _ in places]
        axes.barh(
            positions, [100 * entry["mean"] for _, entry in places], height=0.9 * height, label=arm,
            facecolor=COLOURS[index], alpha=0.75, hatch=HATCHES[index], edgecolor="white", linewidth=0,
            xerr=[100 * (entry["std"] or 0) for _, entry in places], error_kw={"linewidth": 1},
        )  # fmt: skip
        for position, (_, entry) in zip(positions, places, strict=True):
            dots = [100 * value for value in entry["seeds"]]
            axes.scatter(dots, [position] * len(dots), s=7, color="white", edgecolor="black", linewidth=0.6, zorder=3)
            end = max(*dots, 100 * (entry["mean"] + (entry["std"] or 0)))
            axes.annotate(
                f"{100 * entry['mean']:.1f}",
                (end, position),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.invert_yaxis()
    # Room for the number behind the longest bar.
    axes.set(xlabel="%", xlim=(0, 1.06 * axes.get_xlim()[1]))
    axes.set_title(setting_of(results), fontsize=11)
    # Not among the bars, which may leave no room.
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    _plain(axes, grid="x")
    return figure


def similarity_matrices(embeds: dict[str, tuple[Tensor, Tensor]], names: Sequence[str], setting: str) -> Figure:
    """
    Cosines of the same samples under each arm: among images, among texts, and between both. In-modal consistency makes
    the first two equal, cross-modal consistency makes the third symmetric. `embeds` are those of the images and of their
    texts, by arm.
    """
    figure = Figure(figsize=(9.5, 0.4 + 2.8 * len(embeds)), layout="constrained")
    figure.suptitle(setting, fontsize=11)
    panels = figure.subplots(len(embeds), 3, squeeze=False)
    for row, (arm, (image_embeds, text_embeds)) in zip(panels, embeds.items(), strict=True):
        pairs = {
            "image-image": (image_embeds, image_embeds),
            "text-text": (text_embeds, text_embeds),
            "image-text": (image_embeds, text_embeds),
        }
        for axes, (title, (left, right)) in zip(row, pairs.items(), strict=True):
            shown = axes.imshow((left @ right.T).float().cpu().numpy(), cmap="cividis", vmin=-0.5, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{short(arm)}\n{title}", fontsize=10)
        row[0].set_yticks(range(len(names)), [short(name, 18) for name in names], fontsize=6)
    figure.colorbar(shown, ax=panels, label="cosine", shrink=0.6, extend="min")
    return figure


def plane(embedded: dict[str, EmbeddedSet], classes: list[int], setting: str) -> Figure:
    """
    Images (dots) and class texts (stars) of some classes in the plane, as in the paper's figure 1: in the two directions
    in which images and texts together vary most. At most 60 images of each class are drawn.
    """
    figure = Figure(figsize=(4.2 * len(embedded), 4.8), layout="constrained")
    figure.suptitle(setting, fontsize=11)
    panels = figure.subplots(1, len(embedded), squeeze=False)[0]
    for axes, (arm, one) in zip(panels, embedded.items(), strict=True):
        rows = [(one.labels == label).nonzero()[:60, 0] for label in classes]
        both = torch.cat([one.image_embeds[torch.cat(rows)], one.class_embeds[classes]]).cpu().double()
        centred = both - both.mean(dim=0)
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        points = (centred @ directions[:2].T).numpy()
        *images, texts = np.split(points, np.cumsum([len(own) for own in rows]))
        # Many dots may cover each other, few must be seen.
        size, alpha = (16, 0.5) if max(map(len, images)) > 10 else (40, 0.9)
        shown = []
        for index, own in enumerate(images):
            look = {"color": COLOURS[index], "marker": MARKERS[index], "alpha": alpha, "linewidth": 0}
            dots = axes.scatter(*own.T, s=size, **look)
            star = axes.scatter(*texts[index], s=190, color=COLOURS[index], marker="*", edgecolor="white")
            shown.append((dots, star))
        axes.set(title=short(arm, 36), xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        _plain(axes, grid=None)
    figure.legend(
        shown,
        [short(one.data.class_names[label]) for label in classes],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        loc="outside lower center",
        ncols=len(classes),
        frameon=False,
        fontsize=8,
    )
    return figure


def robustness(shift: dict, shifted: str, setting: str) -> Figure:
    """
    Accuracy under shift against accuracy without, one point for each training; the line is fitted to the baseline's.
    `shift` is that protocol of one evaluation in a results.json, `shifted` the name of the shifted set.
    """
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    without, under = shift[f"{shifted}: top1 without the shift, same classes"], shift[f"{shifted} top1"]
    for index, arm in enumerate(under):
        x, y = (100 * np.array(part[arm]["seeds"]) for part in (without, under))
        axes.scatter(x, y, color=COLOURS[index], marker=MARKERS[index], s=45, label=arm, alpha=0.8)
    baseline = next(iter(under))
    if len(set(without[baseline]["seeds"])) > 1:
        line = fit_line(list(zip(without[baseline]["seeds"], under[baseline]["seeds"], strict=True)))
        # A line through seeds that lie close together may be steep: it does not move the axes that the points have.
        limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
        x = np.array(limits["xlim"])
        axes.plot(
            x, line.slope * x + 100 * line.intercept,
            color="#777777", linewidth=1, linestyle="--", zorder=0, label=f"fitted to {baseline}",
        )  # fmt: skip
        axes.set(**limits)
    axes.set(xlabel="top-1 without the shift, same classes (%)", ylabel=f"top-1 on {shifted} (%)")
    axes.set_title(setting, fontsize=11)
    # Below the points: among them it would cover some.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _plain(axes, grid="both")
    return figure


def sweep(axes: Axes, curves: dict[str, dict[float, dict]], lines: dict[str, dict], label: str, measured: str) -> None:
    """
    Draws the figure `measured` against what was swept, the `label`, from the two parts that [`swept_curves`] returns. Bars
    are one standard deviation over seeds.
    """
    for index, (arm, entry) in enumerate(lines.items()):
        mean, std = 100 * entry["mean"], 100 * (entry["std"] or 0)
        axes.axhline(mean, color=COLOURS[index], linestyle="--", linewidth=1.2, label=arm)
        axes.axhspan(mean - std, mean + std, color=COLOURS[index], alpha=0.12, linewidth=0)
    for index, (arm, by_value) in enumerate(curves.items()):
        entries = by_value.values()
        drawn = axes.errorbar(
            list(by_value), [100 * entry["mean"] for entry in entries],
            yerr=None if None in (entry["std"] for entry in entries) else [100 * entry["std"] for entry in entries],
            color=COLOURS[len(lines) + index], marker=MARKERS[len(lines) + index], linewidth=1.2, capsize=2, label=arm,
        )  # fmt: skip
        # A few points to the side, so that bars of one value do not hide each other.
        shift = ScaledTranslation((index - (len(curves) - 1) / 2) * 4 / 72, 0, axes.figure.dpi_scale_trans)
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + shift)
    values = sorted({value for by_value in curves.values() for value in by_value})
    if values[0] > 0 and values[-1] / values[0] >= 4:
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set(xlabel=label, ylabel=f"{measured} (%)", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    _plain(axes, grid="both")


def _plain(axes: Axes, grid: str | None = "y") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
