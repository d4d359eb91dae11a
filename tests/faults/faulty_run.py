"""run_cyclip.py, struck by a fault: `python faulty_run.py FAULT ARGUMENTS`."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver

import transformers.modeling_utils

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer
from modeling_cyclip.commands.train import main
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator


def kill_at_call(number: int, owner: object, name: str, last_act: Callable | None = None) -> None:
    """Kills the process that calls a function for the `number`-th time, after a last act given the call's arguments."""
    function, calls = getattr(owner, name), 0

    def struck(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls < number:
            return function(*args, **kwargs)
        if last_act is not None:
            last_act(function, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, struck)


def signal_at_call(number: int, name: signal.Signals, rank: str, swallowed: type[BaseException] | tuple = ()) -> None:
    """
    Sends the signal to the process of a rank and its data workers in its `number`-th forward pass, and swallows what it
    raises there.
    """
    forward, calls = CyCLIPModel.get_text_features, 0

    def struck(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number and os.environ.get("RANK", rank) == rank:
            workers = [worker.pid for worker in multiprocessing.active_children()]
            for pid in filter(None, [*workers, forkserver._forkserver._forkserver_pid]):
                os.kill(pid, name)
            with contextlib.suppress(swallowed):
                os.kill(os.getpid(), name)
            time.sleep(0.1)  # A worker that dies of it is noticed.
        return forward(*args, **kwargs)

    CyCLIPModel.get_text_features = struck


def write_half(save_file: Callable, tensors: dict, path: str, **kwargs) -> None:
    save_file(tensors, path, **kwargs)
    os.truncate(path, os.path.getsize(path) // 2)


def print_rows_read() -> None:
    collate = SampleCollator.__call__

    def printing(self, samples):
        print("read", *(sample["index"] for sample in samples))
        return collate(self, samples)

    SampleCollator.__call__ = printing


FAULTS = {
    "none, rows read are printed": print_rows_read,
    "killed in the 4th forward pass": lambda: kill_at_call(4, CyCLIPModel, "get_text_features"),
    "killed in the model's file": lambda: kill_at_call(1, transformers.modeling_utils, "safe_save_file", write_half),
    "killed before the optimizer's file": lambda: kill_at_call(1, CyCLIPTrainer, "_save_optimizer_and_scheduler"),
    "told to stop in the 4th forward pass": lambda: signal_at_call(4, signal.SIGTERM, rank="1"),
    "Ctrl-C swallowed in the 3rd forward pass": lambda: signal_at_call(3, signal.SIGINT, "0", KeyboardInterrupt),
    # The method is called in the data workers alone.
    "data worker killed": lambda: kill_at_call(2, CaptionedSamples, "__getitems__"),
}


if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    main(sys.argv[2:])
