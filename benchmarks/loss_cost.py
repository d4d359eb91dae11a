"""Time and memory of the loss, forward and backward: this library beside dense CLIP and dense CyCLIP.

    python benchmarks/loss_cost.py

Runs of the three are interleaved and their medians taken, so that a busy machine slows all of them alike. Memory is the
peak above the inputs: of the allocator on a GPU, of the process elsewhere (Linux).
"""

import statistics

import torch
import torch.nn.functional as F
from machine import DEVICE, PeakMemory, described, script_parser, timed

from modeling_cyclip import cyclip_loss


def dense_clip(image_embeds, text_embeds, logit_scale):
    logits = logit_scale * image_embeds @ text_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def dense_cyclip(image_embeds, text_embeds, logit_scale):
    n = len(image_embeds)
    cross = image_embeds @ text_embeds.T
    labels = torch.arange(n, device=cross.device)
    logits = logit_scale * cross
    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    inmodal = (image_embeds @ image_embeds.T - text_embeds @ text_embeds.T).square().sum() / n
    crossmodal = (cross - cross.T).square().sum() / n
    return contrastive + 0.25 * (inmodal + crossmodal)


def product(image_embeds, text_embeds, logit_scale):
    return cyclip_loss(image_embeds, text_embeds, logit_scale).loss


CONTENDERS = {"product": product, "dense CLIP": dense_clip, "dense CyCLIP": dense_cyclip}


def step(loss_function, inputs):
    for tensor in inputs:
        tensor.grad = None
    loss_function(*inputs).backward()


def measure(n, dim, device, repeats):
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(n, dim, device=device), dim=-1).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(14.3, device=device, requires_grad=True))
    # A few loops a sample where one is too short for the clock.
    loops = max(1, int(2**22 / n**2))
    seconds = {name: [] for name in CONTENDERS}
    memory = {}
    for name, function in CONTENDERS.items():
        step(function, inputs)
        for tensor in inputs:
            tensor.grad = torch.zeros_like(tensor)
        with PeakMemory(device) as peak:
            step(function, inputs)
        memory[name] = peak.megabytes
    for _ in range(repeats):
        for name, function in CONTENDERS.items():
            seconds[name].append(timed(device, step, function, inputs, times=loops)[0])
    return {name: statistics.median(times) for name, times in seconds.items()}, memory


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 256, 1024, 4096, 8192, 16384])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default=DEVICE)
    args = parser.parse_args()

    print(f"{described(args.device)}; milliseconds (megabytes)\n")
    print("| N | d | product | dense CLIP | dense CyCLIP | product / dense CLIP | product / dense CyCLIP |")
    print("|---|---|---|---|---|---|---|")
    for dim in args.dims:
        for n in args.batch_sizes:
            repeats = args.repeats if n >= 4096 else 4 * args.repeats
            seconds, memory = measure(n, dim, args.device, repeats)
            cells = [f"{1e3 * seconds[c]:.2f} ({memory[c]:.0f})" for c in CONTENDERS]
            ratios = [f"{seconds['product'] / seconds[c]:.2f}" for c in ("dense CLIP", "dense CyCLIP")]
            print("|", " | ".join([str(n), str(dim), *cells, *ratios]), "|", flush=True)


if __name__ == "__main__":
    main()
