"""The picture of a training: its loss, there and in validation, the loss's parts and the recall within batches, by step."""

from pathlib import Path

from matplotlib.figure import Figure


PARTS = {
    "loss": "loss",
    "contrastive_loss": "contrastive",
    "inmodal_cyclic_loss": "in-modal, unweighted",
    "crossmodal_cyclic_loss": "cross-modal, unweighted",
    "inmodal_contrastive_loss": "in-modal contrastive",
}
RECALLS = {"image_to_text_recall@1": "image to text", "text_to_image_recall@1": "text to image"}
COLOURS = ("black", "#2a6fbb", "#c0622d", "#2e8b57", "#8a4fa3")


def draw_training_curve(log_history: list[dict], path: Path) -> bool:
    r"""
    Args:
        log_history (`list[dict]`):
            What the Trainer has logged, as trainer_state.json holds it.
        path (`Path`):
            The PNG to write.

    Returns:
        `bool`: whether there was anything to draw.
    """
    steps = [entry for entry in log_history if "loss" in entry]
    if len(steps) < 2:
        return False
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, curves in zip(panels, (PARTS, RECALLS), strict=True):
        for (name, label), colour in zip(curves.items(), COLOURS, strict=False):
            points = [(entry["step"], entry[name]) for entry in steps if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.2)
        if axes is panels[0] and evaluated:
            axes.plot(
                *zip(*evaluated, strict=True), label="loss, validation", color="black", linestyle="--", marker="."
            )
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    panels[0].set(ylabel="loss", yscale="log", title="loss and its parts")
    panels[1].set(ylabel="recall@1", ylim=(0, 1), title="recall@1 within a training batch")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date, so that the same training gives the same file and is not uploaded again.
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    return True
