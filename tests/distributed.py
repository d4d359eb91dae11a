"""Runs a function in several gloo processes."""

import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank, world_size, init_file, function, arguments, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size)
    try:
        results.put((rank, function(rank, world_size, *arguments), None))
    except Exception:
        results.put((rank, None, traceback.format_exc()))
    finally:
        dist.barrier()
        dist.destroy_process_group()


def run_distributed(function, world_size, tmp_path, *arguments):
    """`function(rank, world_size, *arguments)` in `world_size` processes; the results in the order of the ranks."""
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(
            target=_worker,
            args=(rank, world_size, tmp_path / f"init_{function.__name__}", function, arguments, results),
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        gathered = sorted(results.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(timeout=60)
    finally:
        for process in processes:
            process.kill()  # one that waits for another that has failed
    for rank, _, error in gathered:
        assert error is None, f"process {rank} failed:\n{error}"
    return [result for _, result, _ in gathered]
