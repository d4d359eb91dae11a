"""One training, however it is divided, cached, or interrupted."""

import json

import pytest
from safetensors.torch import load_file

from tests.invariant.trajectory import (
    PINNED,
    VARIANTS,
    command,
    read_trajectory,
    run,
    run_killed,
    write_pairs,
)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def assert_is_the_pinned_trajectory(output_dir):
    trajectory, pinned = read_trajectory(output_dir), json.loads(PINNED.read_text())
    assert len(trajectory) == len(pinned) == 6
    for step, (actual, expected) in enumerate(zip(trajectory, pinned, strict=True)):
        # Another order of summation: float32 rounding, amplified a little by every step of AdamW.
        assert actual == pytest.approx(expected, rel=2e-3, abs=2e-5), f"step {step + 1}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_division_of_the_batch_is_the_same_training(train_file, tmp_path, variant):
    run(command(train_file, tmp_path, *VARIANTS[variant]))
    assert_is_the_pinned_trajectory(tmp_path)


@pytest.mark.parametrize("variant", ["1 process x 64", "2 processes x 32"])
def test_killed_and_resumed_is_the_same_training_bit_for_bit(train_file, tmp_path, variant):
    processes, arguments = VARIANTS[variant]
    whole = command(train_file, tmp_path / "whole", processes, arguments)
    interrupted = command(train_file, tmp_path / "interrupted", processes, arguments)
    run(whole)
    checkpoint = tmp_path / "interrupted" / "checkpoint-4"
    run_killed(interrupted, checkpoint)
    # Each process keeps its random state.
    assert len(list(checkpoint.glob("rng_state*.pth"))) == processes

    run([*interrupted, "--resume_from_checkpoint"])

    assert_is_the_pinned_trajectory(tmp_path / "interrupted")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    actual = load_file(tmp_path / "interrupted" / "model.safetensors")
    assert actual["logit_scale"].shape == ()
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())
