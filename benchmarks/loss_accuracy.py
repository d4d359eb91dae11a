"""Errors of the loss and its gradients in float32, against float64: this library beside dense matrices.

    python benchmarks/loss_accuracy.py

Embeddings are random, or lie on a narrow cone (cosines of 0.995 and more), or are those of a solved batch (each caption beside
its image). Errors are norms of differences over norms, medians over seeds. The reference computes log(1 + sum of exp) without
the pair, since even in float64 a log-sum-exp less the pair's logit is nothing but rounding where a batch is solved.
"""

import statistics

import torch
import torch.nn.functional as F
from loss_cost import dense_cyclip
from machine import script_parser

from modeling_cyclip import cyclip_loss


def embeddings(kind, n, dim, seed):
    torch.manual_seed(seed)
    images, texts = torch.randn(n, dim), torch.randn(n, dim)
    if kind == "cone":
        images, texts = 0.05 * images + torch.randn(dim), 0.05 * texts + torch.randn(dim)
    if kind == "solved":
        texts = images + 0.3 * texts
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


def reference(image_embeds, text_embeds, logit_scale):
    n = len(image_embeds)
    cross = image_embeds @ text_embeds.T
    contrastive = 0.0
    for logits in (logit_scale * cross, logit_scale * cross.T):
        others = (logits - logits.diagonal()[:, None]).exp().masked_fill(torch.eye(n, dtype=torch.bool), 0.0)
        contrastive = contrastive + torch.log1p(others.sum(dim=1)).mean() / 2
    inmodal = (image_embeds @ image_embeds.T - text_embeds @ text_embeds.T).square().sum() / n
    return contrastive + 0.25 * (inmodal + (cross - cross.T).square().sum() / n)


def product(image_embeds, text_embeds, logit_scale):
    return cyclip_loss(image_embeds, text_embeds, logit_scale).loss


def value_and_gradients(function, embeds, scale, dtype):
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (*embeds, torch.tensor(scale))]
    loss = function(*inputs)
    loss.backward()
    return [tensor.double() for tensor in (loss.detach(), *(tensor.grad for tensor in inputs))]


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 600, 1024])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--scales", type=float, nargs="+", default=[14.3, 75.0, 100.0])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()

    print("| N | embeddings | scale | loss | image gradient | text gradient | scale gradient |")
    print("|---" * 7 + "|")
    for n in args.batch_sizes:
        for kind in ("random", "cone", "solved"):
            for scale in args.scales:
                errors = {"product": [], "dense": []}
                for seed in range(args.seeds):
                    embeds = embeddings(kind, n, args.dim, seed)
                    expected = value_and_gradients(reference, embeds, scale, torch.float64)
                    for name, function in (("product", product), ("dense", dense_cyclip)):
                        actual = value_and_gradients(function, embeds, scale, torch.float32)
                        errors[name].append(
                            [((a - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]
                        )
                medians = {name: [statistics.median(each) for each in zip(*rows)] for name, rows in errors.items()}  # noqa: B905
                cells = [f"{own:.1e} ({dense:.1e})" for own, dense in zip(*medians.values(), strict=True)]
                print("|", " | ".join([str(n), kind, f"{scale:g}", *cells]), "|", flush=True)
    print("\nIn brackets: dense matrices in float32.")


if __name__ == "__main__":
    main()
