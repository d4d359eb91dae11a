"""The trainings of a comparison: planned, run as processes of their own, kept, and picked up where they were."""

import contextlib
import heapq
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import yaml
from filelock import FileLock, Timeout
from transformers.hf_argparser import HfArg

from ..arguments import parse_with_config
from ..build_model import ModelArguments
from ..data.captions import DataArguments
from ..package_files import find_file
from ..run_record import RUN_RECORD
from ..training_args import CyCLIPTrainingArguments


# What is compared unless told otherwise, as arguments of `cyclip train`: the paper's terms as they are advised here and as
# they were published. The others are compared to the first.
OBJECTIVES = {
    "CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0},
    "CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.25},
    "CyCLIP as published": {
        "inmodal_cyclic_weight": 0.25,
        "crossmodal_cyclic_weight": 0.25,
        "cyclic_start_ratio": 0.0,
        "cyclic_warmup_ratio": 0.0,
        "cyclic_max_gradient_share": "inf",
    },
}

# How many colours, markers and hatches the pictures tell apart.
MAX_DRAWN = 8

# What a launcher starts.
PROGRAM = ("-m", "modeling_cyclip.commands.train")
TRAIN_ARGUMENTS = (ModelArguments, DataArguments, CyCLIPTrainingArguments)
# Given by the comparison itself.
RESERVED = ("config", "output_dir", "seed", "resume_from_checkpoint", "push_to_hub", "overfit_check")

# Parts of the peak in the Trainer's last log: what was allocated when the Trainer was made, what was added to it, and how
# far the peak was above that.
GPU_MEMORY = (
    "before_init_mem_gpu", "init_mem_gpu_alloc_delta", "train_mem_gpu_alloc_delta", "train_mem_gpu_peaked_delta",
)  # fmt: skip

# Time between two looks at the running trainings, which see whether one has ended and how much memory it has.
LOOK_SECONDS = 0.2


@dataclass
class ComparisonArguments:
    """Which trainings are compared, and on what."""

    recipe: str = HfArg(help="YAML file of `cyclip train`'s arguments that all trainings share.")
    output_dir: str = HfArg(help="Folder of the report and of the trainings, which are kept and reused.")
    arms: dict = HfArg(
        default_factory=lambda: deepcopy(OBJECTIVES),
        help="What is compared: `cyclip train`'s arguments by name, the baseline first (default: CLIP, CyCLIP, and "
        "CyCLIP as published, its terms from the first step on).",
    )
    overrides: dict = HfArg(
        default_factory=dict,
        help="Arguments of `cyclip train` for all trainings over those of the recipe, as {name: value}.",
    )
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1, 2], help="Every arm is trained once with each of them.")
    evaluations: dict = HfArg(
        default_factory=dict,
        help="What is measured: `cyclip evaluate`'s arguments (dataset, tasks, templates, ...) by name.",
    )
    center: bool = HfArg(
        default=False,
        help="One more arm without a training: the baseline with each modality's mean removed, which closes the modality "
        "gap for nothing.",
    )
    sweep_arguments: list[str] = HfArg(
        default_factory=list,
        help="Arguments of `cyclip train` that take each of --sweep_values together. An arm that sets them all itself is "
        "trained once, as the line to compare with.",
    )
    sweep_values: list[str] = HfArg(
        default_factory=list, help="Numbers that --sweep_arguments take, one after another."
    )
    plane_classes: list[str] = HfArg(
        default_factory=list, help="Names of classes that are drawn in the plane (default: six that have most images)."
    )
    num_parallel: int = HfArg(
        default=1, help="Trainings at a time, each on a GPU of its own or on its share of the cores."
    )
    launcher: str | None = HfArg(
        default=None, help="Command that starts a training, such as 'accelerate launch --num_processes 8'."
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
    """One training."""

    arm: str
    seed: int  # of the initial weights, the order of the data and the captions drawn
    value: str | None  # of the swept arguments, unless the arm sets them itself
    folder: Path
    argv: tuple[str, ...]  # of `cyclip train`

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
        return self.recorded().get("cost")

    def log_history(self) -> list[dict]:
        """What the Trainer has logged, once the training has ended."""
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    def batch_size(self) -> int:
        """The pairs that one step contrasted, those of all processes."""
        state, record = (json.loads((self.folder / name).read_text()) for name in ("trainer_state.json", RUN_RECORD))
        return state["train_batch_size"] * record["processes"]

    def advice(self) -> str:
        """What to change first where nothing was learnt."""
        config, record = (json.loads((self.folder / name).read_text()) for name in ("config.json", RUN_RECORD))
        # A configuration that is not ours says nothing of the terms.
        terms = record.get("cyclic_terms", config)
        if not (terms["inmodal_cyclic_weight"] or terms["crossmodal_cyclic_weight"]):
            return "check `learning_rate`, the number of steps and the captions"
        if not record["training"].get("cyclic_start_ratio"):
            return "set `cyclic_start_ratio=0.5`, or lower the cyclic weights"
        return "check `learning_rate`, the number of steps and the captions, or lower the cyclic weights"

    def recorded(self) -> dict:
        """What [`Run.record`] has kept; empty where no training has begun."""
        return json.loads(self.record_path.read_text()) if self.record_path.is_file() else {}

    def record(self, cost: dict | None = None, pid: int | None = None) -> None:
        """Keeps what is trained here, and by which process, or what it took once it has ended."""
        process = None if pid is None else {"pid": pid, "output_dir": str(self.folder)}
        partial = self.record_path.with_suffix(".partial")
        partial.write_text(json.dumps({"arguments": _arguments(self), "cost": cost, "process": process}, indent=2))
        partial.replace(self.record_path)


def plan_runs(args: ComparisonArguments) -> list[Run]:
    """All trainings, checked, seed by seed, so that those that have ended can be compared at any moment."""
    recipe = find_file(args.recipe, "training/recipes", ".yaml", "recipe")
    runs = []
    for seed in args.seeds:
        for arm, overrides in args.arms.items():
            if not isinstance(overrides, dict):
                raise ValueError(f"The arm {arm} must map arguments of cyclip train to values, got {overrides!r}.")
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
                        spelt = [json.dumps(one) if isinstance(one, dict) else str(one) for one in settings]
                        argv += [f"--{name}", *spelt]
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
    recorded, planned = run.recorded().get("arguments"), _arguments(run)
    if recorded is not None and (
        recorded["recipe"] != planned["recipe"] or _by_name(recorded["argv"]) != _by_name(planned["argv"])
    ):
        raise ValueError(
            f"{run.folder} holds a training with other arguments. Take another --output_dir, or delete that folder."
        )


def _arguments(run: Run) -> dict:
    """What makes a training what it is: the recipe and what the command line adds."""
    argv = list(run.argv)
    del argv[2:4]  # the output folder may move
    return {"recipe": yaml.safe_load(Path(argv.pop(1)).read_text()), "argv": argv[1:]}


def _by_name(argv: list[str]) -> dict[str, list[str]]:
    """Arguments without their order, which says nothing."""
    named: dict[str, list[str]] = {}
    for part in argv:
        if part.startswith("--"):
            values = named[part] = []
        else:
            values.append(part)
    return named


def train_runs(runs: list[Run], num_parallel: int = 1, launcher: str | None = None) -> None:
    """
    Runs every training that has not ended yet, by `launcher` or else by this Python, and prints how far all are and how
    long they will take. If one fails, the others that have begun are ended; they go on when this is called again.
    """
    waiting = [run for run in runs if run.cost() is None]
    done = len(runs) - len(waiting)
    if done:
        print(f"{done} of {len(runs)} trainings are there already.", flush=True)
    command = shlex.split(launcher) if launcher else [sys.executable]
    running: dict[int, _Training] = {}
    seconds: list[float] = []  # that the trainings took that have ended
    try:
        while waiting or running:
            for slot in range(num_parallel):
                if waiting and slot not in running:
                    training = _begin(waiting.pop(0), command, _environment(slot, num_parallel))
                    running[slot] = training  # before anything else, so that it is ended with this comparison
                    training.run.record(pid=training.process.pid)
                    training.look()
                    print(f"{training.run.name} begins; its log is {training.run.folder / 'log.txt'}", flush=True)
            time.sleep(LOOK_SECONDS)
            for slot, training in list(running.items()):
                training.look()
                if training.process.poll() is None:
                    continue
                _end(training)
                running.pop(slot).lock.release()
                now = time.perf_counter()
                seconds.append(now - training.start)
                told = f"{training.run.name} has ended: {done + len(seconds)} of {len(runs)} trainings are done"
                if waiting or running:
                    begun = [now - other.start for other in running.values()]
                    minutes = seconds_left(seconds, begun, len(waiting), num_parallel) / 60
                    told += f", about {minutes:.0f} minutes left"
                print(told, flush=True)
    finally:
        for training in running.values():
            training.process.terminate()
        for training in running.values():
            training.process.wait()
            training.lock.release()


def seconds_left(ended: Sequence[float], running: Sequence[float], num_waiting: int, num_parallel: int) -> float:
    """
    How long all trainings will still take if each takes as long as those that have `ended` did on average: the ones that
    have been `running` for so many seconds, and those that wait for one of the places.
    """
    each = sum(ended) / len(ended)
    places = [max(0.0, each - seconds) for seconds in running] + [0.0] * (num_parallel - len(running))
    heapq.heapify(places)
    for _ in range(num_waiting):
        heapq.heapreplace(places, places[0] + each)
    return max(places)


def _environment(slot: int, num_parallel: int) -> dict[str, str]:
    """Trainings that run side by side share neither GPU nor core."""
    if num_parallel == 1:
        return dict(os.environ)
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return {**os.environ, "CUDA_VISIBLE_DEVICES": visible[slot % gpus]}
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // num_parallel))}


@dataclass
class _Training:
    """A training that runs, and what its processes (a launcher has several) have taken up to the last look at them."""

    run: Run
    process: subprocess.Popen
    lock: FileLock
    is_new: bool
    start: float = field(default_factory=time.perf_counter)
    cpu_seconds: dict[psutil.Process, float] = field(default_factory=dict)
    peak_memory: int = 0

    def look(self) -> None:
        # Any of them may end meanwhile.
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            for process in (first, *first.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self.cpu_seconds[process] = times.user + times.system
                    self.peak_memory = max(self.peak_memory, process.memory_info().rss)


def _begin(run: Run, launcher: list[str], environment: dict[str, str]) -> _Training:
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(run)
    command = [*launcher, *PROGRAM, *run.argv, "--resume_from_checkpoint"]
    if torch.cuda.is_available():
        command += ["--skip_memory_metrics", "false"]
    is_new = not run.record_path.is_file()
    with open(run.folder / "log.txt", "a") as log:
        return _Training(run, subprocess.Popen(command, stdout=log, stderr=log, env=environment), lock, is_new)


def _end(training: _Training) -> None:
    """Keeps what the training took, or says why it failed."""
    run, seconds = training.run, time.perf_counter() - training.start
    if training.process.returncode != 0:
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        raise ValueError(
            f"The training of {run.name} ended with status {training.process.returncode}: "
            f"{lines[-1] if lines else 'no output'}\n"
            f"The whole log is in {run.folder / 'log.txt'}. The same command goes on with what is missing."
        )
    log = run.log_history()[-1]
    run.record(
        {
            "seconds": seconds if training.is_new else None,
            "cpu_seconds": sum(training.cpu_seconds.values()) if training.is_new and training.cpu_seconds else None,
            "peak_memory": training.peak_memory or None,
            "gpu_memory": sum(log[part] for part in GPU_MEMORY) if GPU_MEMORY[-1] in log else None,
        }
    )


def _lock(run: Run) -> FileLock:
    """
    Two trainings in one folder would spoil each other. The lock keeps other comparisons out as long as this one lives. A
    training may outlive its comparison; it is then known by its process.
    """
    lock = FileLock(run.folder / "lock")
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    if lock.is_locked and not _lives(run):
        return lock
    lock.release()
    raise ValueError(f"{run.name} is being trained already, in {run.folder}. Wait for it, or end that process.")


def _lives(run: Run) -> bool:
    """Whether the process that was recorded still trains. Another one that got its number has other arguments."""
    if (process := run.recorded().get("process")) is None:
        return False
    try:
        return process["output_dir"] in psutil.Process(process["pid"]).cmdline()
    except psutil.Error:
        return False
