"""Trainings that are told to stop, by a cluster, by Ctrl-C or by the death of their launcher."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

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
    "variant, more, status",
    [
        ("two data workers", [], 143),
        pytest.param(
            "two data workers", ["--dataloader_multiprocessing_context", "forkserver"], 143, marks=pytest.mark.slow
        ),
        pytest.param("2 processes x 32", [], 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on_bit_for_bit(
    train_file, tmp_path, variant, more, status
):
    out = tmp_path / "struck"
    arguments = [*VARIANTS[variant][1], *more, "--save_steps", "6", "--resume_from_checkpoint"]
    again = command(train_file, out, VARIANTS[variant][0], arguments)

    stopped, _, log = run(struck(again, "told to stop in the 4th forward pass"))
    # torchrun has a status of its own, and tells those of the processes.
    assert stopped == status and "ends after step" in log, log
    # It ends those that are at their end.
    assert set(re.findall(r"exitcode *: (-?\d+)", log)) <= {"143", "-15"}, log
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


class Send(TrainerCallback):
    """Sends this process a signal as a step begins, and swallows what that raises there."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number, end", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, SystemExit)])
def test_a_trainer_that_was_stopped_trains_again(make_trainer, tmp_path, number, end):
    trainer = make_trainer(save_strategy="no", save_only_model=True, max_steps=3)
    trainer.add_callback(Send(number, step=1))
    with pytest.raises(end):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == (["checkpoint-2"] if end is SystemExit else [])
    assert trainer.args.save_only_model
    assert trainer.train().global_step == 3


def test_a_handler_of_the_script_s_own_stays(make_trainer):
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        trainer = make_trainer()
        trainer.add_callback(Send(signal.SIGUSR1, step=1))
        assert trainer.train().global_step == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_without_checkpoint_on_signal_nothing_is_handled(make_trainer):
    handlers = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            handlers.append(signal.getsignal(signal.SIGTERM))

    trainer = make_trainer(checkpoint_on_signal=False)
    trainer.add_callback(Look())
    trainer.train()
    assert handlers == [signal.SIG_DFL] * 2


def begin(long_command):
    """The process of a training that takes steps, and those below it."""
    process = subprocess.Popen(long_command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    for line in process.stdout:
        if b"'loss'" in line:
            return process, psutil.Process(process.pid).children(recursive=True)
    raise AssertionError("the training ended before its first step")


ENDLESS = ["--max_steps", "100000", "--eval_strategy", "no", "--save_strategy", "no"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_cyclip_sends_the_signal_on_and_takes_the_status_of_the_training(train_file, tmp_path):
    whole = command(train_file, tmp_path / "out", 1, [*VARIANTS["1 process x 64"][1], *ENDLESS])
    arguments = whole[whole.index(str(SCRIPT)) + 1 :]
    launched = [sys.executable, "-m", "modeling_cyclip", "train", "--accelerate_config", "one_gpu", *arguments]
    launcher, _ = begin(launched)
    # Clusters repeat themselves, and also while the training is at its end.
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        launcher.send_signal(number)
        time.sleep(0.3)
    for _ in launcher.stdout:
        pass
    assert launcher.wait() == 143
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "complete").exists()
