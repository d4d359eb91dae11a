"""Which figures of a results.json conclusions are drawn from, and what they are called."""


def main_figures(tasks: dict) -> list[tuple[str, str, dict]]:
    """
    Protocol, name and entries by arm of the figures that conclusions are drawn from: of each protocol the one that stands
    first, of shifted sets top-1, of retrieval recall@1. `tasks` are those of one evaluation in a results.json.
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
    r"""
    Args:
        results (`dict`):
            Content of a sweep's results.json.
        by_arm (`dict[str, dict]`):
            One of its figures.

    Returns:
        `tuple(dict, dict)`: entries by arm and swept value, and entries of the arms that do not depend on it.
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
