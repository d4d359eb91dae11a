"""The trainings of a comparison: planned, run as processes of their own, kept, and picked up where they were."""

import contextlib
import fcntl
import io
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ..arguments import parse_with_config
from ..build_model import ModelArguments
from ..data.captions import DataArguments
from ..package_files import find_file
from ..training_args import CyCLIPTrainingArguments


# The paper's four objectives (section 3 and its ablations, table 6), by what run_cyclip.py is told. The first is what the
# others are compared to.
OBJECTIVES = {
    "CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0},
    "C-CyCLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.25},
    "I-CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.0},
    "CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.25},
}

# Colours, markers and hatches that the pictures tell apart.
MAX_DRAWN = 8

PROGRAM = ("-m", "modeling_cyclip.commands.train")
TRAIN_ARGUMENTS = (ModelArguments, DataArguments, CyCLIPTrainingArguments)
# Given by the comparison itself.
RESERVED = ("config", "output_dir", "seed", "resume_from_checkpoint", "push_to_hub", "overfit_check")


@dataclass
class ComparisonArguments:
    """Which trainings are compared, and on what."""

    recipe: str = field(metadata={"help": "YAML file of run_cyclip.py's arguments that all trainings share."})
    output_dir: str = field(metadata={"help": "Folder of the report and of the trainings, which are kept and reused."})
    arms: dict = field(
        default_factory=lambda: deepcopy(OBJECTIVES),
        metadata={
            "help": "What is compared: run_cyclip.py's arguments by name, the baseline first (default: CLIP, C-CyCLIP, "
            "I-CyCLIP and CyCLIP with the paper's weights)."
        },
    )
    overrides: dict = field(
        default_factory=dict,
        metadata={"help": "Arguments of run_cyclip.py for all trainings over those of the recipe, as {name: value}."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Every arm is trained once with each of them."}
    )
    evaluations: dict = field(
        default_factory=dict,
        metadata={"help": "What is measured: run_evaluation.py's arguments (dataset, tasks, templates, ...) by name."},
    )
    center: bool = field(
        default=False,
        metadata={
            "help": "One more arm without a training: the baseline with each modality's mean removed, which closes the "
            "modality gap for nothing."
        },
    )
    sweep_arguments: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Arguments of run_cyclip.py that take each of --sweep_values together. An arm that sets them all itself "
            "is trained once, as the line to compare with."
        },
    )
    sweep_values: list[str] = field(
        default_factory=list, metadata={"help": "Numbers that --sweep_arguments take, one after another."}
    )
    plane_classes: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of classes that are drawn in the plane (default: six that have most images)."},
    )
    num_parallel: int = field(
        default=1, metadata={"help": "Trainings at a time, each on a GPU of its own or on its share of the cores."}
    )
    launcher: str | None = field(
        default=None,
        metadata={"help": "Command that starts a training, such as 'accelerate launch --num_processes 8'."},
    )

    def __post_init__(self):
        if not self.arms or not self.evaluations:
            raise ValueError("A comparison needs at least one arm and one evaluation: `arms` and `evaluations`.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"The seeds must be different ones, at least one, got {self.seeds}.")
        if bool(self.sweep_arguments) != bool(self.sweep_values):
            raise ValueError("--sweep_arguments and --sweep_values go together.")
        if self.num_parallel < 1:
            raise ValueError(f"--num_parallel must be at least 1, got {self.num_parallel}.")
        if len(self.arms) + self.center > MAX_DRAWN or len(self.plane_classes) > MAX_DRAWN:
            raise ValueError(
                f"Pictures tell {MAX_DRAWN} arms (--center adds one) and {MAX_DRAWN} classes apart: take fewer."
            )
        self.sweep_values = [str(value) for value in self.sweep_values]
        try:
            list(map(float, self.sweep_values))
        except ValueError as error:
            raise ValueError(f"--sweep_values takes numbers: {error}.") from error

    @property
    def baseline(self) -> str:
        """The arm that the others are compared to."""
        return next(iter(self.arms))


@dataclass(frozen=True)
class Run:
    r"""
    One training.

    Args:
        arm (`str`):
            Name of what is compared.
        seed (`int`):
            Its seed: of the initial weights, the order of the data and the captions drawn.
        value (`str`, *optional*):
            What the swept arguments are, unless the arm sets them itself.
        folder (`Path`):
            Output folder.
        argv (`tuple[str]`):
            Arguments of run_cyclip.py.
    """

    arm: str
    seed: int
    value: str | None
    folder: Path
    argv: tuple[str, ...]

    @property
    def condition(self) -> str:
        """What this training shares with those of other seeds."""
        return self.arm if self.value is None else f"{self.arm} at {self.value}"

    @property
    def name(self) -> str:
        return f"{self.condition}, seed {self.seed}"

    @property
    def record_path(self) -> Path:
        return self.folder / "comparison_run.json"

    def cost(self) -> dict | None:
        """
        What the training took: `seconds` and `cpu_seconds` (`None` where it was interrupted), `peak_memory` and, on a GPU,
        `gpu_memory` (of the first process) in bytes. `None` for a training that has not ended.
        """
        return json.loads(self.record_path.read_text())["cost"] if self.record_path.is_file() else None

    def log_history(self) -> list[dict]:
        """What the Trainer of a training that has ended has logged."""
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    def record(self, cost: dict | None) -> None:
        """Keeps what is trained here, and what it took once it has ended."""
        partial = self.record_path.with_suffix(".partial")
        partial.write_text(json.dumps({"arguments": _arguments(self), "cost": cost}, indent=2))
        partial.replace(self.record_path)


def plan_runs(args: ComparisonArguments) -> list[Run]:
    r"""
    All trainings, seed by seed, so that what there is at any moment can be compared.

    Raises:
        `ValueError`: arguments that run_cyclip.py would not take, or a folder with trainings of other arguments.
    """
    recipe = find_file(args.recipe, "training/recipes", ".yaml", "recipe")
    runs = []
    for seed in args.seeds:
        for arm, overrides in args.arms.items():
            if not isinstance(overrides, dict):
                raise ValueError(f"The arm {arm} must map arguments of run_cyclip.py to values, got {overrides!r}.")
            if taken := sorted({*args.overrides, *overrides, *args.sweep_arguments} & set(RESERVED)):
                raise ValueError(f"The comparison sets {taken[0]} itself; leave it out of the arms and overrides.")
            swept = [name for name in args.sweep_arguments if name not in overrides]
            for value in args.sweep_values if swept else [None]:
                chosen = {**args.overrides, **dict.fromkeys(swept, value), **overrides}
                folder = Path(args.output_dir, "runs", f"{slug(arm)}{f'-{value}' if value else ''}-seed{seed}")
                argv = ["--config", str(recipe), "--output_dir", str(folder), "--seed", str(seed)]
                for name, setting in chosen.items():
                    if setting is not None:
                        settings = setting if isinstance(setting, list) else [setting]
                        argv += [f"--{name}", *map(_spelt, settings)]
                runs.append(Run(arm, seed, value, folder, tuple(argv)))
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError(f"Some arms have names that differ in punctuation only: {', '.join(args.arms)}.")
    if args.sweep_values and all(run.value is None for run in runs):
        raise ValueError(
            "Every arm sets all --sweep_arguments itself, so that nothing is swept. Leave them out of one."
        )
    for run in runs:
        _check(run)
    nulls = {name for settings in (args.overrides, *args.arms.values()) for name in settings if settings[name] is None}
    if kept := sorted(nulls.intersection(yaml.safe_load(recipe.read_text()) or {})):
        raise ValueError(f"null does not undo {kept[0]} of the recipe: leave it out there.")
    return runs


def slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _spelt(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _check(run: Run) -> None:
    # argparse prints the usage before the one line that matters.
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            _, data_args, training_args = parse_with_config(TRAIN_ARGUMENTS, list(run.argv), "")
        except SystemExit as error:
            message = errors.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise ValueError(f"{run.name}: {message}") from error
    if training_args.push_to_hub or data_args.overfit_check is not None:
        raise ValueError("A comparison takes neither push_to_hub nor overfit_check: leave them out of the recipe.")
    if run.record_path.is_file():
        trained = json.loads(run.record_path.read_text())["arguments"]
        if trained != _arguments(run):
            raise ValueError(
                f"{run.folder} holds a training with other arguments. Take another --output_dir, or delete that folder."
            )


def _arguments(run: Run) -> dict:
    """What makes a training what it is: the recipe and what the command line adds."""
    argv = list(run.argv)
    del argv[2:4]  # the output folder may move
    return {"recipe": yaml.safe_load(Path(argv.pop(1)).read_text()), "argv": argv[1:]}


def train_runs(runs: list[Run], num_parallel: int = 1, launcher: str | None = None) -> None:
    r"""
    Runs every training that has not ended yet, and prints how far all are and how long they will take.

    Args:
        runs (`list[Run]`):
            The trainings.
        num_parallel (`int`, *optional*, defaults to 1):
            How many at a time.
        launcher (`str`, *optional*):
            What starts a training, defaults to this Python.

    Raises:
        `ValueError`: a training failed; the others that had begun are ended, and go on when called again.
    """
    waiting = [run for run in runs if run.cost() is None]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} trainings are there already.", flush=True)
    environments = queue.SimpleQueue()
    for slot in range(num_parallel):
        environments.put(_environment(slot, num_parallel))
    processes: set[subprocess.Popen] = set()
    stopping = threading.Event()
    start = time.perf_counter()

    def train(run: Run) -> None:
        if stopping.is_set():
            return
        environment = environments.get()
        try:
            _train(run, shlex.split(launcher) if launcher else [sys.executable], environment, processes)
        except BaseException:
            stopping.set()
            raise
        finally:
            environments.put(environment)
        ended = sum(run.cost() is not None for run in waiting)
        left = (time.perf_counter() - start) / ended * (len(waiting) - ended) / 60
        done = len(runs) - len(waiting) + ended
        print(f"{done} of {len(runs)} trainings are done, now {run.name}; {left:.0f} minutes left", flush=True)

    with ThreadPoolExecutor(num_parallel) as pool:
        futures = [pool.submit(train, run) for run in waiting]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stopping.set()
            for process in list(processes):
                process.terminate()


def _environment(slot: int, num_parallel: int) -> dict[str, str]:
    """Trainings that run side by side share neither GPU nor core."""
    if num_parallel == 1:
        return dict(os.environ)
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return {**os.environ, "CUDA_VISIBLE_DEVICES": visible[slot % gpus]}
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num_parallel))}


def _train(run: Run, launcher: list[str], environment: dict[str, str], processes: set[subprocess.Popen]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [*launcher, *PROGRAM, *run.argv, "--resume_from_checkpoint"]
    if torch.cuda.is_available():
        command += ["--skip_memory_metrics", "false"]
    with _locked(run) as lock, open(run.folder / "log.txt", "a") as log:
        is_new = not run.record_path.is_file()
        run.record(cost=None)
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, pass_fds=[lock])
        processes.add(process)
        # Unlike `wait`, this tells what that one process took.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        processes.discard(process)
        seconds = time.perf_counter() - start
    if process.returncode != 0:
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        raise ValueError(
            f"The training of {run.name} ended with status {process.returncode}: {lines[-1] if lines else 'no output'}\n"
            f"The whole log is in {run.folder / 'log.txt'}. The same command goes on with what is missing."
        )
    cost = {
        "seconds": seconds if is_new else None,
        "cpu_seconds": usage.ru_utime + usage.ru_stime if is_new else None,
        "peak_memory": usage.ru_maxrss * 1024,
        "gpu_memory": _peak_gpu_memory(run.log_history()[-1]),
    }
    run.record(cost)


def _peak_gpu_memory(log: dict[str, float]) -> float | None:
    """What was allocated when the Trainer was made, what was added to it, and how far the peak was above that."""
    parts = (
        "before_init_mem_gpu",
        "init_mem_gpu_alloc_delta",
        "train_mem_gpu_alloc_delta",
        "train_mem_gpu_peaked_delta",
    )
    return sum(log[part] for part in parts) if parts[-1] in log else None


@contextlib.contextmanager
def _locked(run: Run) -> Iterator[int]:
    """
    The training inherits the lock and holds it as long as it lives: a comparison that is killed leaves its trainings
    running, and two in one folder would spoil each other.
    """
    with open(run.folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{run.name} is being trained already, in {run.folder}. Wait for it, or end that process."
            ) from None
        yield file.fileno()
