"""One training, however it is divided, cached, or interrupted."""

import functools
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


@pytest.fixture(scope="module")
def whole(train_file, tmp_path_factory):
    """The output folder of a variant that nothing interrupts."""

    @functools.cache
    def output_dir(variant):
        folder = tmp_path_factory.mktemp("whole")
        run(command(train_file, folder, *VARIANTS[variant]))
        return folder

    return output_dir


def read_weights(output_dir):
    return load_file(output_dir / "model.safetensors")


def distance(weights, expected):
    """The norm of the difference over that of the expected weights."""
    squares = [((weights[name] - tensor).square().sum(), tensor.square().sum()) for name, tensor in expected.items()]
    difference, norm = (sum(column) ** 0.5 for column in zip(*squares, strict=True))
    return (difference / norm).item()


def assert_is_the_pinned_trajectory(output_dir):
    trajectory, pinned = read_trajectory(output_dir), json.loads(PINNED.read_text())
    # Six steps, an evaluation in their middle, one at the last of them and one at the end.
    assert len(trajectory) == len(pinned) == 9
    for number, (actual, expected) in enumerate(zip(trajectory, pinned, strict=True), start=1):
        # Another order of summation: float32 rounding, amplified a little by every step of AdamW.
        assert actual == pytest.approx(expected, rel=2e-3, abs=2e-5), f"log {number}"


# The others stand for these.
SLOW = {"4 processes x 16", "FSDP, 2 processes x 32", "gradient cache, chunks of 16"}


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VARIANTS]
)
def test_every_division_of_the_batch_is_the_same_training(whole, variant):
    assert_is_the_pinned_trajectory(whole(variant))
    weights, expected = (read_weights(whole(name)) for name in (variant, "1 process x 64"))
    assert weights.keys() == expected.keys() and weights["logit_scale"].shape == ()
    assert distance(weights, expected) < 1e-4


@pytest.mark.parametrize("variant", ["1 process x 64", "2 processes x 32", "FSDP, 2 processes x 32, gradient cache"])
def test_killed_and_resumed_is_the_same_training_bit_for_bit(whole, train_file, tmp_path, variant):
    # In the midst of the second epoch.
    interrupted = [*command(train_file, tmp_path, *VARIANTS[variant]), "--save_steps", "3"]
    checkpoint = tmp_path / "checkpoint-3"
    run_killed(interrupted, checkpoint)
    # Each process keeps its random state.
    assert len(list(checkpoint.glob("rng_state*.pth"))) == VARIANTS[variant][0]

    run([*interrupted, "--resume_from_checkpoint"])

    assert_is_the_pinned_trajectory(tmp_path)
    expected, actual = read_weights(whole(variant)), read_weights(tmp_path)
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())
