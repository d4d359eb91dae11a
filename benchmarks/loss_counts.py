"""Matrix products and bytes on the wire of one loss with its gradients, counted, for 1, 2 and 4 processes.

    python benchmarks/loss_counts.py

Products are counted in units of n·N·d multiplications, for the n pairs of a process among the N of all. Bytes are what a
process sends by the usual ring algorithms: W − 1 times its share in an all-gather, (W − 1) / W of the whole in a
reduce-scatter, and twice that in an all-reduce.
"""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from machine import script_parser
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_cyclip import cyclip_loss


class Counts(TorchDispatchMode):
    """The multiplications of matrix products, the exponentials and the bytes sent, of what runs inside."""

    def __init__(self, world_size):
        super().__init__()
        self.share = (world_size - 1) / world_size
        self.multiplications = self.exponentials = self.sent = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function._schema.name
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = [argument for argument in arguments if isinstance(argument, torch.Tensor)][-2:]
            self.multiplications += left.shape[0] * left.shape[1] * right.shape[1]
        elif name in ("aten::exp", "aten::exp_"):
            self.exponentials += arguments[0].numel()
        elif name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
            self.sent += self.share * max(tensor.nbytes for tensor in arguments[:2])
        elif name == "c10d::allreduce_":
            self.sent += 2 * self.share * sum(tensor.nbytes for tensor in arguments[0])
        return result


def count(rank, world_size, folder, batch_sizes, dim, results):
    group = None
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{world_size}", rank=rank, world_size=world_size)
        group = dist.group.WORLD
    for total in batch_sizes:
        n = total // world_size
        torch.manual_seed(rank)
        inputs = [F.normalize(torch.randn(n, dim), dim=-1).requires_grad_() for _ in range(2)]
        inputs.append(torch.tensor(14.3, requires_grad=True))
        for weights in ((0.25, 0.25), (0.25, 0.1), (0.0, 0.0)):
            with Counts(world_size) as counts:
                cyclip_loss(
                    *inputs,
                    inmodal_cyclic_weight=weights[0],
                    crossmodal_cyclic_weight=weights[1],
                    return_all_parts=False,
                    process_group=group,
                ).loss.backward()
            if rank == 0:
                cells = (
                    f"{counts.multiplications / (n * total * dim):.2f}",
                    f"{counts.exponentials / (n * total):.2f}",
                    f"{counts.sent / 1e6:.2f}",
                )
                results.put("| " + " | ".join([str(world_size), str(total), str(dim), str(weights), *cells]) + " |")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 2048, 8192], help="pairs of all processes")
    parser.add_argument("--dim", type=int, default=512)
    args = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| processes | N | d | weights | products of n·N·d | exponentials an entry | MB sent |")
    print("|---" * 7 + "|")
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for world_size in args.processes:
            results = context.SimpleQueue()
            arguments = world_size, folder, args.batch_sizes, args.dim, results
            workers = [context.Process(target=count, args=(rank, *arguments)) for rank in range(world_size)]
            for worker in workers:
                worker.start()
            for _ in range(3 * len(args.batch_sizes)):
                print(results.get(), flush=True)
            for worker in workers:
                worker.join()


if __name__ == "__main__":
    main()
