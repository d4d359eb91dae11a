"""Trains CLIP and CyCLIP alike, measures them alike, and reports whether cyclic consistency helps on this data.

cyclip compare --config emoji
"""

import shlex
import sys
from pathlib import Path

from ..arguments import parse_with_config
from ..comparison.measure import compare, load_evaluations, measure
from ..comparison.plots import draw_pictures
from ..comparison.report import write_report
from ..comparison.runs import ComparisonArguments, plan_runs, train_runs


def main(argv: list[str] | None = None) -> None:
    try:
        run(argv)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on where this one was.")


def run(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    (args,) = parse_with_config(
        (ComparisonArguments,), argv, "Compare objectives on the same data and seeds.", "training/recipes/comparisons"
    )
    try:
        runs = plan_runs(args)
        evaluations = load_evaluations(args)
        train_runs(runs, args.num_parallel, args.launcher)
        measured = {}
        for done, trained in enumerate(runs):
            print(f"measuring {trained.name} ({done} of {len(runs)} are done)", flush=True)
            measured[trained] = {evaluation.name: measure(trained, evaluation) for evaluation in evaluations}
    except ValueError as error:
        sys.exit(f"error: {error}")

    results = compare(args, runs, evaluations, measured, f"cyclip compare {shlex.join(argv)}")
    output_dir = Path(args.output_dir)
    pictures = draw_pictures(output_dir, results, runs, evaluations, args.plane_classes)
    print(f"\n{write_report(output_dir, results, pictures)}\n\nThe report is in {output_dir / 'report.md'}.\n")


if __name__ == "__main__":
    main()
