"""Draws loss.svg: which similarities the terms of the loss compare, and how the terms grow with the batch.

python docs/figures/draw_loss.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from torch.nn.functional import normalize

from modeling_cyclip import cyclic_regularisers, cyclip_loss


matplotlib.use("svg")
from matplotlib import pyplot as plt


BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
PLACES = {"$I_1$": (0, 1), "$T_1$": (1, 1), "$I_2$": (0, 0), "$T_2$": (1, 0)}
DIM = 128
BATCHES = [16, 32, 64, 128, 256, 512]
REFERENCE = 128


def draw_term(axes: Axes, title: str, lines: dict[tuple[str, str], str]) -> None:
    """Two images on the left, their captions on the right, and the similarities that a term is made of."""
    for (start, end), colour in lines.items():
        (x, y), (u, v) = PLACES[start], PLACES[end]
        axes.plot([x, u], [y, v], color=colour, linewidth=3, zorder=1)
    for name, (x, y) in PLACES.items():
        axes.scatter(x, y, s=900, color="white", edgecolor="black", zorder=2)
        axes.text(x, y, name, ha="center", va="center", fontsize=13, zorder=3)
    axes.set_title(title, fontsize=11)
    axes.set(xlim=(-0.3, 1.3), ylim=(-0.3, 1.3), aspect="equal")
    axes.axis("off")


def draw_growth(axes: Axes) -> None:
    """Both terms on random unit vectors, and what the loss adds for them with and without a reference batch."""
    generator = torch.Generator().manual_seed(0)
    terms, added, kept = [], [], []
    for batch in BATCHES:
        images, texts = normalize(torch.randn(2, batch, DIM, generator=generator), dim=-1)
        terms.append([term.item() for term in cyclic_regularisers(images, texts)])
        for values, reference in ((added, None), (kept, REFERENCE)):
            loss = cyclip_loss(images, texts, 14.3, cyclic_reference_batch_size=reference)
            values.append((loss.loss - loss.contrastive_loss).item())
    inmodal, crossmodal = zip(*terms, strict=True)
    axes.plot(BATCHES, inmodal, "o-", color=BLUE, label="in-modal term")
    axes.plot(BATCHES, crossmodal, "s--", color=ORANGE, label="cross-modal term")
    axes.plot(BATCHES, added, "^-", color=GREY, label="both, times 0.25")
    axes.plot(BATCHES, kept, "v-", color=GREEN, label=f"the same, reference batch {REFERENCE}")
    axes.set(xlabel="pairs in the batch, N", ylabel="value", xticks=[16, 128, 256, 512])
    axes.set_title(f"Random unit vectors of {DIM} dimensions", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "loss", "svg.fonttype": "path"})
    # Two rows: on a phone, four pictures beside each other are too small to read.
    figure, axes = plt.subplot_mosaic(
        [["contrastive", "in-modal", "cross-modal"], ["growth"] * 3],
        figsize=(7.2, 6),
        height_ratios=[1, 1.25],
        layout="constrained",
    )
    matched = dict.fromkeys([("$I_1$", "$T_1$"), ("$I_2$", "$T_2$")], GREEN)
    mismatched = dict.fromkeys([("$I_1$", "$T_2$"), ("$I_2$", "$T_1$")], ORANGE)
    sides = dict.fromkeys([("$I_1$", "$I_2$"), ("$T_1$", "$T_2$")], BLUE)
    draw_term(
        axes["contrastive"], "contrastive:\npairs above all others", {**matched, **dict.fromkeys(mismatched, GREY)}
    )
    draw_term(axes["in-modal"], "in-modal:\nthe two sides alike", sides)
    draw_term(axes["cross-modal"], "cross-modal:\nthe two diagonals alike", mismatched)
    draw_growth(axes["growth"])
    figure.savefig(Path(__file__).with_name("loss.svg"), metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
