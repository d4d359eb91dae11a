"""What a healthy training prints: little before its first step, and no warning that nobody can do anything about."""

import re
import subprocess

import pytest
from transformers.utils import logging

from modeling_cyclip.commands.train import main
from tests.invariant.trajectory import SCRIPT, command, environment, write_pairs


OPTIONS = ["--per_device_train_batch_size", "32", "--max_steps", "1", "--save_strategy", "no", "--eval_strategy", "no"]


def lines_before_the_first_step(output: str) -> list[str]:
    before, first_log, _ = output.partition("{'loss'")
    assert first_log
    return [line for line in re.split(r"[\r\n]+", before) if line.strip()]


def check(lines: list[str]) -> None:
    assert len(lines) < 30, "\n".join(lines)
    assert [line for line in lines if re.search("warn|deprecated|requires|unused", line, re.IGNORECASE)] == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_from_scratch_begins_in_few_lines(tmp_path, processes):
    training = command(write_pairs(tmp_path), tmp_path / "out", processes, [*OPTIONS, "--disable_tqdm", "false"])
    result = subprocess.run(training, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    assert result.returncode == 0, result.stdout[-3000:]
    check(lines_before_the_first_step(result.stdout))
    bars = re.findall(r"^(.*?) *\d+%\|", result.stdout, re.MULTILINE)
    assert {"Training:", "Evaluating:"} <= set(bars)


def test_a_fine_tuning_begins_in_few_lines(tmp_path, model, processor, capfd):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "start")
    training = command(write_pairs(tmp_path), tmp_path / "out", 1, [*OPTIONS, "--model_name_or_path"])
    arguments = [*training[training.index(str(SCRIPT)) + 1 :], str(tmp_path / "start")]
    for name in ("--model_size", "--image_size", "--patch_size", "--vocab_size"):
        del arguments[arguments.index(name) : arguments.index(name) + 2]
    verbosity = logging.get_verbosity()
    try:
        main(arguments)
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(verbosity)
    output = capfd.readouterr()
    check(lines_before_the_first_step(output.err + output.out))
