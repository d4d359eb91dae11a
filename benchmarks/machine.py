"""What benchmarks measure with: the machine's name, the time and the peak memory of a piece of work."""

import argparse
import ctypes
import gc
import platform
import time

import torch


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def script_parser(description):
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def described(device):
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def timed(device, function, *arguments, times=1):
    """Seconds of one call out of `times`, with all that it leaves to a GPU, and the result."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        result = function(*arguments)
    synchronize(device)
    return (time.perf_counter() - start) / times, result


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


class PeakMemory:
    """Put around the work, it has in `megabytes` the peak above what was there before: of the allocator on a GPU, of the
    process elsewhere (Linux)."""

    def __init__(self, device):
        self.on_gpu = device == "cuda"

    def __enter__(self):
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as clear:
                clear.write("5")  # resets the peak
            self.before = resident_bytes("VmRSS")
        return self

    def __exit__(self, *_):
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else resident_bytes("VmHWM")
        self.megabytes = (peak - self.before) / 1e6


def resident_bytes(field):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))
