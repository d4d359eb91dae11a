"""Runs of run_cyclip.py that must be one and the same training, and the trajectory that they share.

    python -m tests.invariant.trajectory

records it anew in trajectory.json, after a change that is meant to change the training.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"
FSDP_SCRIPT = Path(__file__).with_name("fsdp_on_cpu.py")
PINNED = Path(__file__).parent / "trajectory.json"
LOSSES = ("loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss")
COMPARED = (*LOSSES, "grad_norm", *(f"eval_{name}" for name in LOSSES))

COMMON = [
    "--model_size", "nano", "--image_size", "16", "--patch_size", "8", "--vocab_size", "600", "--use_cpu",
    "--max_steps", "6", "--logging_steps", "1", "--save_steps", "2", "--learning_rate", "1e-3", "--warmup_steps", "2",
    "--cyclic_start_ratio", "0", "--cyclic_warmup_ratio", "0.5", "--cyclic_max_gradient_share", "0.1",
    "--disable_tqdm", "true", "--caption_column", "captions",
    "--eval_strategy", "steps", "--eval_steps", "3",
]  # fmt: skip

# Name: processes, the arguments that divide the same 64 pairs, and the script if it is another.
VARIANTS = {
    "1 process x 64": (1, ["--per_device_train_batch_size", "64"]),
    "2 processes x 32": (2, ["--per_device_train_batch_size", "32"]),
    "4 processes x 16": (4, ["--per_device_train_batch_size", "16"]),
    "gradient cache, chunks of 8": (1, ["--per_device_train_batch_size", "64", "--gradient_cache_chunk_size", "8"]),
    "gradient cache, chunks of 16": (1, ["--per_device_train_batch_size", "64", "--gradient_cache_chunk_size", "16"]),
    "2 processes x 32, gradient cache": (
        2,
        ["--per_device_train_batch_size", "32", "--gradient_cache_chunk_size", "8"],
    ),
    "FSDP, 2 processes x 32": (2, ["--per_device_train_batch_size", "32"], FSDP_SCRIPT),
    "FSDP, 2 processes x 32, gradient cache": (
        2,
        ["--per_device_train_batch_size", "32", "--gradient_cache_chunk_size", "8"],
        FSDP_SCRIPT,
    ),
    "two data workers": (1, ["--per_device_train_batch_size", "64", "--dataloader_num_workers", "2"]),
}


def write_pairs(folder: Path) -> Path:
    """160 images with two captions each, so that six steps of 64 pairs pass through three epochs."""
    rows = []
    for level in range(40):
        for colour in COLOURS:
            name = f"{colour}{level}.png"
            coloured_image(colour, level).save(folder / name)
            rows.append({"image": name, "captions": [f"{colour} number {level}", f"shade {level} of {colour}"]})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(
    train_file: Path, output_dir: Path, processes: int, arguments: list[str], script: Path = SCRIPT
) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [
        *launcher,
        str(script),
        *COMMON,
        "--train_file",
        str(train_file),
        "--validation_file",
        str(train_file),
        "--output_dir",
        str(output_dir),
        *arguments,
    ]


def run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert finished.returncode == 0, finished.stderr[-4000:]


def run_killed(command: list[str], checkpoint: Path) -> None:
    """Runs until the checkpoint is complete, then kills all processes at once."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 120
    while not (checkpoint / "complete").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before its checkpoint"
        time.sleep(0.005)
    kill_all(psutil.Process(process.pid))
    process.wait()


def kill_all(launcher: psutil.Process) -> None:
    """Kills a process and all below it."""
    # Not the process group: torchrun starts its workers in sessions of their own.
    killed = [launcher, *launcher.children(recursive=True)]
    for each in killed:
        each.kill()
    psutil.wait_procs(killed)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def read_trajectory(output_dir: Path) -> list[dict[str, float]]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    logs = [{name: log[name] for name in COMPARED if name in log} for log in history]
    return [log for log in logs if log]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(command(write_pairs(folder), folder / "out", *VARIANTS["1 process x 64"]))
        PINNED.write_text(json.dumps(read_trajectory(folder / "out"), indent=1) + "\n")


if __name__ == "__main__":
    main()
