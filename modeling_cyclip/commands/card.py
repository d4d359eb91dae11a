"""Writes the card of a model, its README.md, from what the model's folder and results of evaluation hold.

cyclip card OUTPUT_DIR --model_id user/name --results results/results.json
"""

import argparse
import sys
from pathlib import Path

from ..hub.card import CARD, make_card, read_comparison, write_card
from ..hub.results import Evaluation, read_results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Write the card of a model into its folder. It replaces a card that is there."
    )
    parser.add_argument("output_dir", type=Path, help="the checkpoint's folder")
    parser.add_argument("--model_id", help="the model's name on the Hub, for the code samples (default: the folder)")
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    try:
        model_id = args.model_id or str(args.output_dir)
        evaluations = read_all_results(args, [str(args.output_dir), model_id])
        figures = [figure for evaluation in evaluations for figure in evaluation.figures]
        card = make_card(args.output_dir, model_id, figures, args.license, read_comparison(args.comparison))
        write_card(args.output_dir, card)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(args.output_dir / CARD)


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="results.json files of cyclip evaluate")
    parser.add_argument(
        "--results_of", help="what those files call this model (default: its folder or its name on the Hub)"
    )
    parser.add_argument("--comparison", type=Path, help="output folder of cyclip compare, which the card reports")
    parser.add_argument(
        "--license", help="the Hub's identifier of the weights' licence, such as apache-2.0 or cc-by-4.0"
    )


def read_all_results(args: argparse.Namespace, names: list[str]) -> list[Evaluation]:
    """What the files of `--results` say of the model, which they call by one of these names or by `--results_of`."""
    return [read_results(path, [args.results_of] if args.results_of else names) for path in args.results]


if __name__ == "__main__":
    main()
