"""Measures a CLIP checkpoint.

python evaluation/run_evaluation.py --model_name_or_path OUT --dataset ../shared/data/cifar10 --output_dir results
accelerate launch evaluation/run_evaluation.py --model_name_or_path OUT --dataset cifar10 --tasks all --output_dir r
"""

import sys
import time
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from evaluation.arguments import DataArguments, EvaluationArguments
from evaluation.benchmarks import open_benchmark
from evaluation.encoder import Encoder, load_checkpoint
from evaluation.evaluation_set import EvaluationSet, load_evaluation_set
from evaluation.report import Results, results_json, write_report
from evaluation.suite import PROTOCOLS, EmbeddedSets, embed


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((DataArguments, EvaluationArguments), description="Measure a CLIP checkpoint.")
    data_args, args = parser.parse_args_into_dataclasses(argv)
    state = PartialState()
    start = time.perf_counter()
    try:
        with state.main_process_first():
            data = load_sets(data_args)
        results = evaluate(args.model_name_or_path, data, args, state)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not state.is_main_process:
        return

    header = {
        "checkpoint": args.model_name_or_path,
        "data": data["test"].name,
        "precision": args.dtype,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    text = write_report(Path(args.output_dir), header, {"results": results_json(results, args.seed)}, [])
    print(f"\n{data['test'].name}, {args.model_name_or_path}\n\n{text}\n")


def load_sets(args: DataArguments) -> dict[str, EvaluationSet]:
    """The sets by role."""
    benchmark = open_benchmark(args.dataset)
    split = args.split or benchmark.split
    templates = None
    if args.templates is not None:
        templates = [line.strip() for line in Path(args.templates).read_text().splitlines() if line.strip()]
    class_splits = [*args.class_splits, *args.shift_splits]
    return {"test": load_evaluation_set(benchmark, split, args.columns, templates, class_splits)}


def evaluate(
    checkpoint: str, data: dict[str, EvaluationSet], args: EvaluationArguments, state: PartialState
) -> Results:
    """Every protocol's figures for one checkpoint; nothing but on the main process."""
    if unknown := set(args.tasks) - PROTOCOLS.keys():
        raise ValueError(f"There is no task {min(unknown)}; there are {', '.join(PROTOCOLS)}.")
    model, processor = load_checkpoint(checkpoint, args.dtype, state.device)
    cache_dir = Path(args.output_dir, "embeddings")
    encoder = Encoder(model, processor, cache_dir, args.batch_size, args.num_workers, state)
    test = embed(data["test"], encoder)
    if not state.is_main_process:
        return {}
    sets = EmbeddedSets(test)
    return {task: PROTOCOLS[task](sets) for task in args.tasks}


if __name__ == "__main__":
    main()
