"""Ends a training that is told to stop with a checkpoint: a cluster that wants its machine back, Ctrl-C, a launcher that died."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging

from .distributed import training_process_group
from .training_args import CyCLIPTrainingArguments


logger = logging.get_logger(__name__)

# What schedulers send some time before they kill: most of them SIGTERM, SLURM's `--signal` any, by custom SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# That of a process that SIGTERM ended, which schedulers and shells know.
EXIT_STATUS = 143
# Both torchrun and `accelerate launch` set one of these for the processes that they start.
SET_BY_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
# A checkpoint that is not written so long after the launcher died will not be written: the other processes are gone, too.
GRACE_SECONDS = 60


class PreemptionCallback(TrainerCallback):
    r"""
    Within `with callback:`, SIGTERM and SIGUSR1 lead to a checkpoint after the step that runs, whatever `save_strategy` and
    `save_only_model` say. Then the Trainer calls [`PreemptionCallback.exit`]. The signal may reach any one of several
    processes. An evaluation that is due at that step is left out. A signal after the last step has no effect. One for which
    the script has a handler of its own is left to it.

    A Ctrl-C that Python could not raise, as in the midst of a fork, is raised after the step.

    Args:
        args ([`CyCLIPTrainingArguments`]):
            The arguments of the training.
    """

    def __init__(self, args: CyCLIPTrainingArguments):
        self.args = args
        self.is_requested = self.is_interrupted = self.stops = False
        self._handlers: dict[signal.Signals, Callable | int] = {}
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> "PreemptionCallback":
        self.is_requested = self.is_interrupted = self.stops = False
        self._save_only_model = self.args.save_only_model
        # Only the main thread may set handlers. A training in another one is stopped by whoever started it.
        if threading.current_thread() is threading.main_thread():
            free = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
            if "forkserver" in (self.args.dataloader_multiprocessing_context, multiprocessing.get_start_method()):
                _start_forkserver(free)
            self._handlers = {number: signal.signal(number, self._request) for number in free}
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self.args.save_only_model = self._save_only_model

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        signal.default_int_handler(number, frame)

    def on_train_begin(self, args, state, control, **kwargs):
        # By gloo, the processes agree on the CPUs: no GPU waits, and nothing waits for a GPU.
        if self._group is None and training_process_group() is not None:
            self._group = dist.new_group(backend="gloo", timeout=args.ddp_timeout_delta)

    def on_step_begin(self, args, state, control, **kwargs):
        if self._group is not None:
            self._requests = torch.tensor([self.is_requested], dtype=torch.int32)
            self._agreement = dist.all_reduce(self._requests, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.stops = self.is_requested
        if self._group is not None:
            self._agreement.wait()
            self.stops = bool(self._requests)
        if self.stops:
            control.should_save, control.should_evaluate, args.save_only_model = True, False, False

    def exit(self, state: TrainerState) -> None:
        """Raises a `SystemExit` of status 143, so that nothing is done that a script does after its training."""
        if state.is_world_process_zero:
            logger.warning(f"The training was told to stop and ends after step {state.global_step} with a checkpoint.")
        raise SystemExit(EXIT_STATUS)


def ignore_signals() -> None:
    """For a process at its end: another signal would change its exit status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _start_forkserver(numbers: list[signal.Signals]) -> None:
    """Starts the process that forks data workers, so that it ignores the signals: they end when it does."""
    import multiprocessing.forkserver

    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    multiprocessing.forkserver.ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start_worker(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """
    The `worker_init_fn` of data workers that outlive each signal once. A cluster sends it to every process of a job, and
    without its workers a training could not end its step. The second one is Python's, which so ends a worker that hangs.
    """
    for number in SIGNALS:
        signal.signal(number, _outlive)
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _outlive(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def end_with_launcher() -> None:
    """
    Asks this process to stop, as by SIGTERM, when torchrun or `accelerate launch` dies that started it. Does nothing in a
    process that was started otherwise: it may outlive its shell.
    """
    if any(name in os.environ for name in SET_BY_LAUNCHERS):
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(EXIT_STATUS)
