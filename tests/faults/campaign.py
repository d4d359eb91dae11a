"""Trainings killed at random moments, powered off and damaged, until each fault has been tried many times.

    python -m tests.faults.campaign [--tries 20] [--fault NAME]

writes the table of tests/faults/README.md. It takes about an hour on two cores.
"""

import argparse
import io
import json
import random
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from safetensors.torch import load_file

from modeling_cyclip.checkpoints import last_complete_checkpoint
from tests.faults import power_cut
from tests.invariant.trajectory import FSDP_SCRIPT, SCRIPT, command, environment, kill_all, write_pairs


PAGE = Path(__file__).with_name("README.md")

# Forty steps, a checkpoint after every third: a training is about as long as its start.
STEPS = [
    "--max_steps", "40", "--save_steps", "3", "--save_total_limit", "2", "--eval_steps", "20", "--logging_steps", "5",
    "--resume_from_checkpoint", "--report_to", "none",
]  # fmt: skip
WHOLE, HALF = ["--per_device_train_batch_size", "64"], ["--per_device_train_batch_size", "32"]
CACHE = ["--gradient_cache_chunk_size", "16"]

# Ways to train: processes, arguments, script.
WAYS = {
    "table": (1, WHOLE, SCRIPT),
    "shards": (1, WHOLE, SCRIPT),
    "gradient cache": (1, [*WHOLE, *CACHE], SCRIPT),
    "two data workers": (1, [*WHOLE, "--dataloader_num_workers", "2"], SCRIPT),
    "augmentation": (1, [*WHOLE, "--inmodal_contrastive"], SCRIPT),
    "FSDP, two processes": (2, HALF, FSDP_SCRIPT),
}


def training(way: str, folder: Path, output_dir: Path) -> list[str]:
    processes, arguments, script = WAYS[way]
    told = command(folder / "pairs.jsonl", output_dir, processes, [*arguments, *STEPS], script)
    if way == "shards":
        place = told.index("--train_file")
        told[place : place + 2] = ["--train_shards", str(folder / "pairs-*.tar")]
        told[told.index("--validation_file")] = "--validation_shards"
        told[told.index("--validation_shards") + 1] = str(folder / "pairs-0.tar")
        place = told.index("--caption_column")
        del told[place : place + 2]
    return told


def write_shards(table: Path) -> None:
    """The pairs of a table as four WebDataset shards."""
    rows = [json.loads(row) for row in table.read_text().splitlines()]
    for number in range(4):
        with tarfile.open(table.with_name(f"pairs-{number}.tar"), "w") as tar:
            for key, row in enumerate(rows[number::4]):
                captions = json.dumps({"caption": row["captions"]}).encode()
                for name, content in (("png", (table.parent / row["image"]).read_bytes()), ("json", captions)):
                    member = tarfile.TarInfo(f"{number}{key:03}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class Run:
    """A training in processes of its own."""

    def __init__(self, told: list[str], log: Path):
        self.log = log
        with log.open("w") as file:
            self.process = psutil.Popen(told, stdout=file, stderr=file, env=environment())

    def wait_for_first_step(self) -> None:
        while "'loss'" not in self.log.read_text() and self.process.poll() is None:
            time.sleep(0.02)

    def kill(self) -> None:
        kill_all(self.process)

    def end(self) -> int:
        """The exit status, when it has ended by itself."""
        return self.process.wait()


def same_training(output_dir: Path, expected: Path) -> bool:
    """Whether two trainings have the same weights, bit for bit."""
    actual, weights = (load_file(folder / "model.safetensors") for folder in (output_dir, expected))
    return all(actual[name].equal(tensor) for name, tensor in weights.items())


def struck(way: str, tries: int, folder: Path, strike: Callable[[Run], None]) -> int:
    """
    Trains, strikes at a random moment after the first step, begins the same command again, up to five times over; then lets
    it end. Returns how many strikes survived: those of trainings that ended like one that nothing struck.
    """
    moments = random.Random(f"{way} {tries}")
    log, whole = folder / "log", folder / "whole"
    undisturbed = Run(training(way, folder, whole), log)
    undisturbed.wait_for_first_step()
    start = time.monotonic()
    assert undisturbed.end() == 0, log.read_text()[-3000:]
    length = time.monotonic() - start

    survived = done = 0
    while done < tries:
        output_dir, strikes = folder / f"struck {done}", 0
        while strikes < min(5, tries - done):
            run = Run(training(way, folder, output_dir), log)
            run.wait_for_first_step()
            # Five of these come to about the length of a training.
            time.sleep(moments.uniform(0, 0.45 * length))
            if run.process.poll() is not None:
                break
            strike(run)
            strikes += 1
        ended = Run(training(way, folder, output_dir), log).end()
        if ended == 0 and same_training(output_dir, whole):
            survived += strikes
        else:
            print(f"{way}: a training that was struck {strikes} times is another\n{log.read_text()[-3000:]}")
        done += strikes
        shutil.rmtree(output_dir)
    return survived


def terminate(run: Run) -> None:
    run.process.terminate()
    # Behind its last step, a training ends of the signal, or saves its model.
    assert run.end() in (143, -signal.SIGTERM, 0), run.log.read_text()[-3000:]


def kill_launcher(run: Run) -> None:
    workers = run.process.children(recursive=True)
    run.process.kill()
    _, alive = psutil.wait_procs([run.process, *workers], timeout=70)
    assert not alive, alive


def damaged(folder: Path) -> tuple[int, int]:
    """Cuts each file of the newest of two checkpoints in half. How often the older one is found, and of how many."""
    out = folder / "out"
    assert Run(training("table", folder, out), folder / "log").end() == 0
    older, newest = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    found = []
    for path in filter(Path.is_file, list(newest.rglob("*"))):
        content = path.read_bytes()
        if path.name != "complete" and content:
            path.write_bytes(content[: len(content) // 2])
            found.append(last_complete_checkpoint(out) == str(older))
            path.write_bytes(content)
    return sum(found), len(found)


def faults(tries: int) -> dict[str, Callable[[Path], tuple[int, int]]]:
    """By name, what tries each fault in a folder and returns how many tries survived, and of how many."""

    def random_moments(way: str, strike: Callable[[Run], None], tries: int) -> Callable[[Path], tuple[int, int]]:
        return lambda folder: (struck(way, tries, folder, strike), tries)

    return {
        **{f"kill -9: {way}": random_moments(way, Run.kill, tries) for way in WAYS},
        "SIGTERM: table": random_moments("table", terminate, max(1, tries // 4)),
        "launcher killed: FSDP, two processes": random_moments(
            "FSDP, two processes", kill_launcher, max(1, tries // 4)
        ),
        "power cut": lambda folder: (power_cut.survivors(folder, flush=True), power_cut.CUTS),
        "power cut, if nothing were flushed": lambda folder: (
            power_cut.survivors(folder, flush=False),
            power_cut.CUTS,
        ),
        "a file of the newest checkpoint cut in half": damaged,
    }


def write_row(name: str, survived: int, tries: int) -> None:
    """Puts a result into the table of the page, in place of an older one of the same fault."""
    row = f"| {name} | {tries} | {survived} |"
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith(f"| {name} |")]
    last = max(number for number, line in enumerate(lines) if line.startswith("|"))
    lines.insert(last + 1, row)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, help="of each way to train (default: 20)")
    parser.add_argument("--fault", help="try only those with this in their name")
    arguments = parser.parse_args()
    for name, try_fault in faults(arguments.tries).items():
        if arguments.fault is None or arguments.fault in name:
            with tempfile.TemporaryDirectory() as folder:
                write_shards(write_pairs(Path(folder)))
                survived, tries = try_fault(Path(folder))
            write_row(name, survived, tries)
            print(f"{name}: {survived} of {tries}", flush=True)


if __name__ == "__main__":
    main()
