"""Trainings that are told to stop, by a cluster, by Ctrl-C or by the death of their launcher."""

import signal
import subprocess
import sys

import psutil
import pytest
from safetensors.torch import load_file

from tests.faults.test_faults import FAULTY_RUN, run
from tests.invariant.trajectory import SCRIPT, VARIANTS, command, environment, write_pairs


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def struck(whole_command, fault):
    """The same command, and the fault strikes in it."""
    script = whole_command.index(str(SCRIPT))
    return [*whole_command[:script], str(FAULTY_RUN), fault, *whole_command[script + 1 :]]


@pytest.mark.parametrize(
    "variant, status",
    [("two data workers", 143), pytest.param("2 processes x 32", 1, marks=pytest.mark.slow)],
)
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on_bit_for_bit(train_file, tmp_path, variant, status):
    out = tmp_path / "struck"
    arguments = [*VARIANTS[variant][1], "--save_steps", "6", "--resume_from_checkpoint"]
    again = command(train_file, out, VARIANTS[variant][0], arguments)

    stopped, _, log = run(struck(again, "told to stop in the 4th forward pass"))
    # torchrun has a status of its own.
    assert stopped == status and "ends after step 4 with a checkpoint" in log, log
    assert [path.name for path in out.iterdir() if path.name != ".training.lock"] == ["checkpoint-4"]
    assert (out / "checkpoint-4" / "complete").exists()

    assert run(again)[0] == 0
    whole = command(train_file, tmp_path / "whole", VARIANTS[variant][0], arguments)
    assert run(whole)[0] == 0
    expected, actual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())


def test_a_ctrl_c_that_python_swallows_ends_the_training_after_its_step(train_file, tmp_path):
    whole = command(train_file, tmp_path / "out", 1, VARIANTS["1 process x 64"][1])
    status, _, log = run(struck(whole, "Ctrl-C swallowed in the 3rd forward pass"))
    assert status == 1 and log.splitlines()[-1].startswith("Interrupted. The same command"), log
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def begin(long_command):
    """The process of a training that takes steps, and those below it."""
    process = subprocess.Popen(long_command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    for line in process.stdout:
        if b"'loss'" in line:
            return process, psutil.Process(process.pid).children(recursive=True)
    raise AssertionError("the training ended before its first step")


ENDLESS = ["--max_steps", "100000", "--eval_strategy", "no", "--save_strategy", "no"]


def test_processes_end_with_a_checkpoint_when_their_launcher_is_killed(train_file, tmp_path):
    processes, arguments = VARIANTS["2 processes x 32"]
    launcher, workers = begin(command(train_file, tmp_path / "out", processes, [*arguments, *ENDLESS]))
    assert len(workers) >= 2
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "complete").exists()


def test_cyclip_sends_the_signal_on_and_takes_the_status_of_the_training(train_file, tmp_path):
    whole = command(train_file, tmp_path / "out", 1, [*VARIANTS["1 process x 64"][1], *ENDLESS])
    arguments = whole[whole.index(str(SCRIPT)) + 1 :]
    launched = [sys.executable, "-m", "modeling_cyclip", "train", "--accelerate_config", "one_gpu", *arguments]
    launcher, _ = begin(launched)
    launcher.send_signal(signal.SIGTERM)
    for _ in launcher.stdout:
        pass
    assert launcher.wait() == 143
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "complete").exists()
