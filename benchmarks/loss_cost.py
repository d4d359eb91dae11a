"""Time and memory of the loss, forward and backward: this library beside what a user would take instead.

    python benchmarks/loss_cost.py
    OMP_NUM_THREADS=1 python benchmarks/loss_cost.py --batch_sizes 128 256 512 1024 --dims 512

The peers: CLIP's and CyCLIP's losses from dense matrices, the formula of the official implementation, and open_clip's
`ClipLoss` where `pip install --no-deps open_clip_torch` has brought its file. Runs of all are interleaved, so that a busy
machine slows them alike. A ratio is taken within each round; its median and quartiles are printed. Memory is the peak above
the inputs: of the allocator on a GPU, of the process elsewhere (Linux).
"""

import importlib.util
import statistics
from pathlib import Path

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


def official_cyclip(image_embeds, text_embeds, logit_scale):
    """Four matrices of logits, and the differences of two of them divided by the scale, as the official code has it."""
    n = len(image_embeds)
    text_to_image = logit_scale * text_embeds @ image_embeds.T
    image_to_text = logit_scale * image_embeds @ text_embeds.T
    labels = torch.arange(n, device=image_embeds.device)
    contrastive = (F.cross_entropy(text_to_image, labels) + F.cross_entropy(image_to_text, labels)) / 2
    images = logit_scale * image_embeds @ image_embeds.T
    texts = logit_scale * text_embeds @ text_embeds.T
    inmodal = (images - texts).square().mean() / logit_scale**2 * n
    crossmodal = (text_to_image - image_to_text).square().mean() / logit_scale**2 * n
    return contrastive + 0.25 * (inmodal + crossmodal)


def product(image_embeds, text_embeds, logit_scale):
    return cyclip_loss(image_embeds, text_embeds, logit_scale, return_all_parts=False).loss


def product_as_clip(image_embeds, text_embeds, logit_scale):
    weights = {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0}
    return cyclip_loss(image_embeds, text_embeds, logit_scale, **weights, return_all_parts=False).loss


CONTENDERS = {
    "product": product,
    "product, weights 0": product_as_clip,
    "dense CLIP": dense_clip,
    "dense CyCLIP": dense_cyclip,
}


def open_clip_loss():
    """open_clip's loss by its file alone: the package imports torchvision."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        return {}
    file = Path(spec.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"open_clip": module.ClipLoss()}


def step(loss_function, inputs):
    # As in a network, gradients go on to the towers and are not added up.
    torch.autograd.grad(loss_function(*inputs), inputs)


def measure(contenders, n, dim, device, rounds, *numbers):
    """Seconds of every round and peak megabytes, by contender. They take embeddings, then the numbers: the scale, ..."""
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(n, dim, device=device), dim=-1).requires_grad_() for _ in range(2)]
    inputs += [torch.tensor(number, device=device, requires_grad=True) for number in numbers]
    # A few loops a sample where one is too short for the clock.
    loops = max(1, int(2**22 / n**2))
    seconds = {name: [] for name in contenders}
    memory = {}
    for name, function in contenders.items():
        step(function, inputs)
        with PeakMemory(device) as peak:
            step(function, inputs)
        memory[name] = peak.megabytes
    for _ in range(rounds):
        for name, function in contenders.items():
            seconds[name].append(timed(device, step, function, inputs, times=loops)[0])
    return seconds, memory


def ratio(own, others):
    """Median and quartiles of the ratios of all rounds."""
    ratios = [mine / other for mine, other in zip(own, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 4096, 8192])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024])
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds at 4,096 pairs and above; four times as many below"
    )
    parser.add_argument("--scale", type=float, default=14.3, help="logit_scale, as a multiplier")
    parser.add_argument("--device", default=DEVICE)
    args = parser.parse_args()

    contenders = {**CONTENDERS, "official formula": official_cyclip, **open_clip_loss()}
    print(f"{described(args.device)}; milliseconds (megabytes), and the time over that of dense CLIP [quartiles]\n")
    print("| N | d |", " | ".join(contenders), "|")
    print("|---" * (2 + len(contenders)) + "|")
    for dim in args.dims:
        for n in args.batch_sizes:
            rounds = max(2, args.repeats if n >= 4096 else 4 * args.repeats)
            seconds, memory = measure(contenders, n, dim, args.device, rounds, args.scale)
            cells = [
                f"{1e3 * statistics.median(times):.2f} ({memory[name]:.0f}) {ratio(times, seconds['dense CLIP'])}"
                for name, times in seconds.items()
            ]
            print("|", " | ".join([str(n), str(dim), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
