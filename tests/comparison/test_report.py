"""Tables and pictures from the content of a results.json."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from modeling_cyclip.comparison import plots
from modeling_cyclip.comparison.report import answer_table, main_figures, swept_curves, write_report


COST_UNKNOWN = dict.fromkeys(("seconds", "cpu_seconds", "peak_memory", "gpu_memory"))
TOLD = {
    "hardware": "CPU", "environment": {}, "commit": None, "command": "cyclip compare", "recipe": "r.yaml", "overrides": {},
    "swept": {}, "seeds": [0], "notes": [], "health": {},
}  # fmt: skip


def entry(*seeds: float, difference: dict | None = None) -> dict:
    figure = {"seeds": list(seeds), "mean": sum(seeds) / len(seeds), "std": 0.01, "items": 100}
    return figure if difference is None else {**figure, "difference": difference}


@pytest.fixture
def results():
    differs = {
        "to": "CLIP",
        "value": -0.05,
        "items_interval": [-0.08, -0.02],
        "seeds_interval": [-0.12, 0.02],
        "verdict": "lower for these models, but no difference shown: the interval over seeds includes zero",
    }
    figure = {"CLIP": entry(0.30, 0.32), "CyCLIP": entry(0.25, 0.27, difference=differs)}
    shift = {"blob top1": figure, "blob top3": figure, "blob: top1 without the shift, same classes": figure}
    gap = {"modality_gap": {"CLIP": {"seeds": [0.9, 1.0], "mean": 0.95, "std": 0.07}}}
    return {
        "arms": {"CLIP": {}, "CyCLIP": {}},
        "results": {"emoji": {"zero_shot": {"top1": figure, "top3": figure}, "shift": shift, "geometry": gap}},
    }


def test_conclusions_are_drawn_from_one_figure_a_protocol(results):
    chosen = [(task, name) for task, name, _ in main_figures(results["results"]["emoji"])]
    assert chosen == [("zero_shot", "top1"), ("shift", "blob top1")]


def test_answer_gives_both_intervals_and_says_what_is_not_shown(results):
    assert (
        "| emoji, zero_shot top1 | CyCLIP | 26.00 ± 1.00 | -5.00 | -8.00 to -2.00 | -12.00 to +2.00 | lower for these "
        "models, but no difference shown: the interval over seeds includes zero |"
    ) in answer_table(results)


def test_a_picture_names_the_pairs_that_were_trained_on():
    assert plots.setting_of({**TOLD, "seeds": [0, 1]}) == "r, seeds 0, 1"
    own_data = {**TOLD, "overrides": {"dataset_name": "../shared/data/cifar100"}}
    assert plots.setting_of(own_data) == "cifar100 by the recipe r, seed 0"


def test_line_of_robustness_goes_through_the_baselines_points(results):
    shift = results["results"]["emoji"]["shift"]
    figure = plots.robustness(shift, "blob", "emoji, seed 0")
    (line,) = figure.axes[0].lines
    (x0, x1), (y0, y1) = line.get_data()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(1)
    assert y0 == pytest.approx(x0)


def test_steep_line_of_robustness_does_not_stretch_the_axis():
    without = {"CLIP": entry(0.590, 0.591), "CyCLIP": entry(0.50, 0.51)}
    under = {"CLIP": entry(0.40, 0.42), "CyCLIP": entry(0.40, 0.41)}
    shift = {"blob top1": under, "blob: top1 without the shift, same classes": without}
    figure = plots.robustness(shift, "blob", "emoji, seeds 0, 1")
    low, high = figure.axes[0].get_ylim()
    assert 35 < low < 40 < 42 < high < 45
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CLIP", "CyCLIP", "fitted to CLIP"]


def test_sweep_draws_a_curve_an_arm_and_a_line_for_what_it_does_not_change(results):
    results["swept"] = {"inmodal_cyclic_weight": ["0.01", "0.1", "1"]}
    by_arm = {"CLIP": entry(0.3), **{f"CyCLIP at {value}": entry(float(value) / 10) for value in ("0.01", "0.1", "1")}}
    curves, lines = swept_curves(results, by_arm)
    assert list(lines) == ["CLIP"]
    assert {value: figure["mean"] for value, figure in curves["CyCLIP"].items()} == {0.01: 0.001, 0.1: 0.01, 1.0: 0.1}
    axes = Figure().subplots()
    plots.sweep(axes, curves, lines, "weight", "top-1")
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["CLIP", "CyCLIP"]


def test_arms_of_a_sweep_stand_side_by_side():
    axes = Figure().subplots()
    curves = {arm: {1.0: entry(0.3), 2.0: entry(0.4)} for arm in ("CLIP", "C-CyCLIP", "CyCLIP")}
    plots.sweep(axes, curves, {}, "weight", "top-1")
    places = [line.get_transform().transform((1.0, 30.0))[0] for line, _, _ in axes.containers]
    assert all(low <= value <= high for value, (low, high) in ((2, axes.get_xlim()), (40, axes.get_ylim())))
    here = axes.transData.transform((1.0, 30.0))[0]
    assert places[0] < here < places[2]
    assert places[1] == pytest.approx(here)


def test_one_seed_has_no_error_bars():
    axes = Figure().subplots()
    one_seed = {**entry(0.3), "std": None}
    plots.sweep(axes, {"CyCLIP": {1.0: one_seed, 2.0: one_seed}}, {}, "weight", "top-1")
    (container,) = axes.containers
    assert not container.has_yerr


def test_long_names_of_arms_do_not_overlap():
    eye = torch.eye(4)
    arms = [f"{'CyCLIP, warmed up over half of the training, ' * 2}{number}" for number in range(2)]
    figure = plots.similarity_matrices(dict.fromkeys(arms, (eye, eye)), list("abcd"), "letters, seed 0")
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes[:6]]
    for one, other in itertools.combinations(titles, 2):
        assert not one.overlaps(other)


def test_dots_of_the_plane_stand_in_the_legend_beside_the_stars():
    data = SimpleNamespace(class_names=["cat", "dog"])
    one = SimpleNamespace(
        image_embeds=torch.eye(4), class_embeds=torch.eye(4)[:2], labels=torch.tensor([0, 0, 1, 1]), data=data
    )
    (legend,) = plots.plane({"CLIP": one}, [0, 1], "animals, seed 0").legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog"]
    assert len(legend.findobj(PathCollection)) == 4


def test_names_stand_in_the_report_as_they_are(results, tmp_path):
    arm, data = "a|b `c` <i> *d*", "emoji [x](http://elsewhere)"
    said = json.dumps(results).replace("CyCLIP", arm)
    results = json.loads(
        said.replace("emoji", data).replace("blob", "a|_b_ [test]").replace("lower for", f"{arm} for")
    )
    health = {arm: [f"{arm}, seed 0: set `cyclic_warmup_ratio`."]}
    cost = {arm: [{**COST_UNKNOWN, "seconds": 90}]}
    told = {**TOLD, "evaluations": {data: {}}, "cost": cost, "health": health}
    answer = write_report(tmp_path, {**results, **told}, [])
    report = (tmp_path / "report.md").read_text()
    shown = r"a\|b \`c\` \<i\> \*d\*"
    for part in (
        f"# {shown} against CLIP", f"- {shown}: as below", r"## emoji [x\](http://elsewhere)", f"| | CLIP | {shown} |",
        rf"| emoji [x\](http://elsewhere), a\|\_b\_ [test] top1 | {shown} | 26.00", f"| {shown} for these models",
        f"| {shown} | 1.50 | – |", f"> {shown}, seed 0: set `cyclic_warmup_ratio`.",
    ):  # fmt: skip
        assert part in report
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in answer.splitlines() if line.startswith("|")]
    assert set(cells) == {8}


def test_what_nobody_knows_is_left_out(results, tmp_path):
    write_report(tmp_path, {**results, **TOLD, "evaluations": {"emoji": {}}, "cost": {"CLIP": [COST_UNKNOWN]}}, [])
    report = (tmp_path / "report.md").read_text()
    assert "Cost" not in report
    assert "commit" not in report
