"""report.md of a comparison and its short answer, made of what its results.json holds. A model's card shows the answer, too."""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..evaluation.report import in_markdown


def write_report(output_dir: Path, results: dict, pictures: Sequence[tuple[str, Path]]) -> str:
    """
    Writes `results.json` and `report.md`, and returns the short answer as Markdown. `results` are what [`compare`] returns,
    `pictures` captions and PNG files in `output_dir`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    baseline, *others = map(in_markdown, results["arms"])
    short_answer = answer(results)
    parts = [
        f"# {', '.join(others)} against {baseline}",
        _how(results),
        "## The answer",
        short_answer,
        *(f"> {note}" for note in results["notes"]),
    ]
    for evaluation, tasks in results["results"].items():
        parts += [f"## {in_markdown(evaluation)}", _figures_table(tasks)]
    if any(value is not None for costs in results["cost"].values() for cost in costs for value in cost.values()):
        parts += ["## Cost", _cost_table(results["cost"])]
    for caption, path in pictures:
        png = path.relative_to(output_dir)
        caption = in_markdown(caption)
        parts.append(f"![{caption}]({png})\n\n{caption} ([SVG]({png.with_suffix('.svg')}))")
    report = "\n\n".join(part for part in parts if part) + "\n"
    (output_dir / "report.md").write_text(report, encoding="utf-8")
    return short_answer


def answer(results: dict) -> str:
    """Markdown of the main figures and of what went wrong in trainings, so that a reader knows what the table is worth."""
    health = [
        f"> {_with_names(message, [arm])}" for arm, messages in results["health"].items() for message in messages
    ]
    return "\n\n".join([answer_table(results), *health])


def _with_names(sentence: str, names: Iterable[str]) -> str:
    """A sentence of ours, which may hold code, with the name that it begins with as it is."""
    for name in sorted(names, key=len, reverse=True):
        if sentence.startswith(name):
            return in_markdown(name) + sentence[len(name) :]
    return sentence


def answer_table(results: dict) -> str:
    """Markdown of the main figures of a results.json against the baseline, in percent, and of what may be concluded."""
    lines = [
        "| measured | arm | value | minus the baseline | 95 % over test items | 95 % over seeds | so it is |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for evaluation, tasks in results["results"].items():
        for task, name, by_arm in main_figures(tasks):
            label = describe_figure(evaluation, task, name)
            for arm, figure in by_arm.items():
                cells = [in_markdown(label), in_markdown(arm), _percent(figure)]
                if (differs := figure.get("difference")) is None:
                    cells += [""] * 4
                else:
                    cells += [
                        f"{100 * differs['value']:+.2f}",
                        _interval(differs["items_interval"]),
                        _interval(differs["seeds_interval"]),
                        _with_names(differs["verdict"], by_arm),
                    ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _how(results: dict) -> str:
    overrides = f", {_arguments(results['overrides'])}" if results["overrides"] else ""
    seeds = ", ".join(map(str, results["seeds"]))
    versions = ", ".join(f"{name} {version}" for name, version in results["environment"].items())
    lines = [
        f"    {results['command']}",
        "",
        *(
            f"- {in_markdown(arm)}: {_arguments(arguments) or 'as below'}"
            for arm, arguments in results["arms"].items()
        ),
        f"- all: the recipe `{results['recipe']}`{overrides}",
        *([f"- swept: {_arguments(results['swept'])}"] if results["swept"] else []),
        *(f"- {in_markdown(name)}: {_arguments(arguments)}" for name, arguments in results["evaluations"].items()),
        f"- seeds {seeds}, each with the same initial weights, order of data and captions for every arm",
        f"- {results['hardware']}; {versions}" + (f"; commit {results['commit']}" if results["commit"] else ""),
        "",
        "Means over seeds, with their standard deviation. Shares are in percent. The interval over test items is a paired "
        "bootstrap and holds for these very models; the one over seeds is Student's and speaks of models trained again.",
    ]
    return "\n".join(lines)


def _arguments(arguments: dict) -> str:
    return " ".join(
        f"`--{name} {shlex.join(map(str, value)) if isinstance(value, list) else value}`"
        for name, value in arguments.items()
    )


def _figures_table(tasks: dict) -> str:
    conditions = list(
        dict.fromkeys(arm for by_name in tasks.values() for by_arm in by_name.values() for arm in by_arm)
    )
    lines = [f"| | {' | '.join(map(in_markdown, conditions))} |", f"|---|{'---:|' * len(conditions)}"]
    for task, by_name in tasks.items():
        for name, by_arm in by_name.items():
            cells = [_cell(by_arm[arm]) if arm in by_arm else "" for arm in conditions]
            lines.append(f"| {in_markdown(f'{task} {name}')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    if "items" in figure:
        return _percent(figure)
    return f"{figure['mean']:.4g}" + ("" if figure["std"] is None else f" ± {figure['std']:.2g}")


def _cost_table(cost_by_arm: dict[str, list[dict]]) -> str:
    lines = ["| | minutes | CPU minutes | peak memory, GB | GPU memory, GB |", "|---|---:|---:|---:|---:|"]
    scales = {"seconds": 60, "cpu_seconds": 60, "peak_memory": 1e9, "gpu_memory": 1e9}
    for arm, costs in cost_by_arm.items():
        cells = []
        for name, scale in scales.items():
            known = [cost[name] / scale for cost in costs if cost[name] is not None]
            cells.append(f"{sum(known) / len(known):.2f}" if known else "–")
        lines.append(f"| {in_markdown(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nOf one training, start and end included; the mean over seeds."


def _percent(figure: dict) -> str:
    return f"{100 * figure['mean']:.2f}" + ("" if figure["std"] is None else f" ± {100 * figure['std']:.2f}")


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def main_figures(tasks: dict) -> list[tuple[str, str, dict]]:
    """
    Protocol, name and entries by arm of the figures that conclusions are drawn from: the first of each protocol, top-1 of
    shifted sets, and recall@1 of retrieval. `tasks` are those of one evaluation in a results.json.
    """
    chosen = []
    for task, by_name in tasks.items():
        for position, (name, by_arm) in enumerate(by_name.items()):
            if task == "shift":
                is_main = name.endswith(" top1")
            else:
                is_main = position == 0 or (task == "retrieval" and name.endswith("@1"))
            if is_main and "items" in next(iter(by_arm.values())):
                chosen.append((task, name, by_arm))
    return chosen


def swept_curves(results: dict, by_arm: dict[str, dict]) -> tuple[dict[str, dict[float, dict]], dict[str, dict]]:
    """
    One figure of a sweep's results.json as entries by arm and swept value, and entries of the arms that do not depend on
    it.
    """
    values = next(iter(results["swept"].values()))
    curves = {
        arm: {float(value): by_arm[f"{arm} at {value}"] for value in values}
        for arm in results["arms"]
        if f"{arm} at {values[0]}" in by_arm
    }
    return curves, {arm: by_arm[arm] for arm in results["arms"] if arm in by_arm}


def describe_figure(evaluation: str, task: str, name: str) -> str:
    """What a figure is called in tables and pictures."""
    return f"{evaluation}, {name if task == 'shift' else f'{task} {name}'}"
