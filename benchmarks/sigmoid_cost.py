"""Time and memory of the sigmoid loss, forward and backward: this library beside what a user would take instead.

    python benchmarks/sigmoid_cost.py
    OMP_NUM_THREADS=1 python benchmarks/sigmoid_cost.py --batch_sizes 128 256 512 1024 --dims 512

The peers compute whole matrices: the code of transformers' `SiglipModel`, and the same loss in as few operations as autograd
allows. Runs of all are interleaved, so that a busy machine slows them alike. A ratio is taken within each round; its median
and quartiles are printed. Memory is the peak above the inputs: of the allocator on a GPU, of the process elsewhere (Linux).
"""

import os
import statistics

import torch
import torch.nn.functional as F
from loss_cost import measure, ratio
from machine import DEVICE, described, script_parser

from modeling_cyclip import sigmoid_loss


def transformers_sigmoid(image_embeds, text_embeds, logit_scale, logit_bias):
    """Signs from two more matrices, and sums row by row, as in `SiglipModel.forward`."""
    logits = torch.matmul(text_embeds, image_embeds.t()) * logit_scale + logit_bias
    eye = torch.eye(logits.size(0), device=logits.device)
    signs = -torch.ones_like(logits) + 2 * eye
    return -F.logsigmoid(signs * logits).sum(dim=-1).mean()


def dense_sigmoid(image_embeds, text_embeds, logit_scale, logit_bias):
    """The scale goes to the embeddings, and no matrix of signs is made: log σ(x) = log σ(−x) + x on the pairs."""
    logits = (logit_scale * image_embeds) @ text_embeds.T + logit_bias
    return -(F.logsigmoid(-logits).sum() + logits.diagonal().sum()) / len(logits)


CONTENDERS = {"this library": sigmoid_loss, "transformers": transformers_sigmoid, "dense": dense_sigmoid}
PEERS = ("transformers", "dense")


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024])
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds at 4,096 pairs and above; four times as many below"
    )
    parser.add_argument(
        "--scale", type=float, default=10.0, help="logit_scale, as a multiplier; SigLIP's at the start"
    )
    parser.add_argument("--bias", type=float, default=-10.0, help="logit_bias; SigLIP's at the start")
    parser.add_argument("--device", default=DEVICE)
    args = parser.parse_args()

    load = "" if args.device == "cuda" else f", load {os.getloadavg()[0]:.1f} before"
    print(
        f"{described(args.device)}{load}; milliseconds (megabytes); this library's time over each peer's [quartiles]\n"
    )
    heads = [*CONTENDERS, *(f"over {name}" for name in PEERS), "memory over dense"]
    print("| N | d |", " | ".join(heads), "|")
    print("|---" * (2 + len(heads)) + "|")
    for dim in args.dims:
        for n in args.batch_sizes:
            rounds = max(2, args.repeats if n >= 4096 else 4 * args.repeats)
            seconds, memory = measure(CONTENDERS, n, dim, args.device, rounds, args.scale, args.bias)
            cells = [f"{1e3 * statistics.median(seconds[name]):.2f} ({memory[name]:.0f})" for name in CONTENDERS]
            cells += [ratio(seconds["this library"], seconds[name]) for name in PEERS]
            cells.append(f"{100 * memory['this library'] / memory['dense']:.0f} %" if memory["dense"] > 1 else "")
            print("|", " | ".join([str(n), str(dim), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
