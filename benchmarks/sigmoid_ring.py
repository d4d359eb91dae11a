"""The sigmoid loss over several processes, forward and backward: the texts gathered, as this library does, or passed round a ring.

    OMP_NUM_THREADS=1 python benchmarks/sigmoid_ring.py --processes 2

Round the ring go a process's texts, each time while the logits with those before are computed, and after them the sum of their gradient.
Memory does not grow with the number of processes then, but (2W − 1) messages of n·d numbers leave a process instead of (2W − 2).
Rounds of both are interleaved, and the slowest process counts. The ratio is taken within each round; its median and quartiles are
printed. Processes on one machine talk by gloo (CPU): between machines the ring has more to hide, and more to send.
"""

import os
import statistics
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loss_cost import ratio
from machine import described, script_parser, timed
from torch.nn.functional import normalize

from modeling_cyclip import sigmoid_loss
from modeling_cyclip.softmaxes import BLOCK_BYTES


SCALE, BIAS = 10.0, -10.0


def passed_on(tensor):
    """Begins to send a tensor to the next process. Returns what will arrive from the one before, and whom to wait for."""
    rank, size = dist.get_rank(), dist.get_world_size()
    arriving = torch.empty_like(tensor)
    works = [dist.isend(tensor, (rank + 1) % size), dist.irecv(arriving, (rank - 1) % size)]
    return arriving, works


def wait(works):
    for work in works:
        work.wait()


def ring(image_embeds, text_embeds):
    """The loss of all pairs, and the gradients of the own embeddings as `sigmoid_loss` gives them."""
    size, num_rows = dist.get_world_size(), len(image_embeds)
    images = SCALE * image_embeds
    total = zero = image_embeds.new_zeros(())
    grad_image, grad_text, texts = torch.zeros_like(image_embeds), torch.zeros_like(text_embeds), text_embeds
    block_size = BLOCK_BYTES // (num_rows * image_embeds.element_size())  # as in `sigmoid_loss`
    for hop in range(size):
        next_texts, works = passed_on(texts) if hop < size - 1 else (None, [])
        for start in range(0, num_rows, block_size):
            rows = slice(start, start + block_size)
            block = torch.addmm(image_embeds.new_tensor(BIAS), images[rows], texts.T)
            if hop == 0:
                pairs = block.diagonal(start)
                pairs.neg_()
            total = total + torch.logaddexp(block, zero).sum()
            block.sigmoid_()
            if hop == 0:
                pairs.neg_()
            grad_image[rows].addmm_(block, texts, alpha=SCALE / num_rows)
            grad_text.addmm_(block.T, images[rows], alpha=1 / num_rows)
        wait(works)
        arriving, works = passed_on(grad_text)
        wait(works)
        grad_text, texts = arriving, next_texts
    dist.all_reduce(total)
    return total / (size * num_rows), grad_image, grad_text


def gathered(image_embeds, text_embeds):
    inputs = [embeds.detach().requires_grad_() for embeds in (image_embeds, text_embeds)]
    loss = sigmoid_loss(*inputs, SCALE, BIAS, dist.group.WORLD)
    loss.backward()
    return loss.detach(), *(embeds.grad for embeds in inputs)


def worker(rank, args, store):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=args.processes)
    if rank == 0:
        print(
            f"{args.processes} processes, {described('cpu')} each; milliseconds, and the ring's time over the gathered\n"
        )
        print("| N | d | gathered | ring | ring over gathered |\n|---|---|---|---|---|", flush=True)
    for n in args.batch_sizes:
        torch.manual_seed(rank)
        embeds = [normalize(torch.randn(n // args.processes, args.dim), dim=-1) for _ in range(2)]
        for one, other in zip(ring(*embeds), gathered(*embeds), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        seconds = {gathered: [], ring: []}
        for _ in range(args.rounds):
            for way, taken in seconds.items():
                dist.barrier()
                slowest = torch.tensor(timed("cpu", way, *embeds)[0])
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
                taken.append(slowest.item())
        if rank == 0:
            cells = [f"{1e3 * statistics.median(taken):.1f}" for taken in seconds.values()]
            print(
                "|",
                " | ".join([str(n), str(args.dim), *cells, ratio(seconds[ring], seconds[gathered])]),
                "|",
                flush=True,
            )
    dist.destroy_process_group()


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[512, 2048, 8192], help="of all processes together"
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (args, os.path.join(folder, "store")), args.processes)


if __name__ == "__main__":
    main()
