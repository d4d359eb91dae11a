"""A whole training step on the CPU with patch dropout and without it.

    OMP_NUM_THREADS=1 python benchmarks/patch_dropout_cost.py

`nano` on drawn shapes, 16 patches an image and 128 pairs, and a ViT-S/16 on random pictures, 196 patches and 16 pairs. Short
trainings with each share take turns. A step lasts from the end of one to that of the next, loading and the text tower included.
"""

import statistics
import tempfile

from machine import described, script_parser
from step_cost import Ends, between, make_trainer


CASES = {"nano": (128, 32), "small": (16, 224)}


def step_times(size, share, steps):
    """The milliseconds of each step of a training but the first two."""
    batch_size, image_size = CASES[size]
    ends = Ends()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(size, batch_size, image_size, steps, folder, ends, patch_dropout=share).train()
    return between(ends.ends)


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.75], help="beside 0, to which ratios are")
    parser.add_argument("--steps", type=int, default=8, help="of a training; the first two are not counted")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    rows = []
    for size in args.cases:
        times = {share: [] for share in (0.0, *args.shares)}
        for _ in range(args.rounds):
            for share, rounds in times.items():
                rounds.append(step_times(size, share, args.steps))
        for share, rounds in times.items():
            ratios = [
                statistics.median(own) / statistics.median(whole)
                for own, whole in zip(rounds, times[0.0], strict=True)
            ]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            all_steps = [step for steps in rounds for step in steps]
            rows.append(
                f"| {size}, {CASES[size][0]} pairs | {share:g} | {statistics.median(all_steps):.1f} | "
                f"{middle:.3f} [{low:.3f}, {high:.3f}] |"
            )
    # At the end, since training a tokenizer prints empty lines.
    print(f"{described('cpu')}\n\n| | share | ms a step | ratio of medians by round [quartiles] |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
