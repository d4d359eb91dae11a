"""Trainings that are no longer finite."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_cyclip.commands.train import main
from modeling_cyclip.divergence import DivergenceError
from tests.invariant.trajectory import SCRIPT, command, write_pairs


class Spoil(TrainerCallback):
    """Writes a value into a weight at the end of a step."""

    def __init__(self, step, value=math.inf):
        self.step, self.value = step, value

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            # The embedding of a token that no caption has: the loss stays finite.
            model.text_model.embeddings.token_embedding.weight.data[-3, 0] = self.value


@pytest.fixture
def train(make_trainer):
    def train(callback=None, **options):
        trainer = make_trainer(**{"max_steps": 4, "logging_steps": 1, **options})
        if callback is not None:
            trainer.add_callback(callback)
        trainer.train()

    return train


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(train, tmp_path, chunk):
    with pytest.raises(DivergenceError, match=r"at step 2: .*\(here 1e\+30\).*good checkpoint is .*checkpoint-1\."):
        train(learning_rate=1e30, gradient_cache_chunk_size=chunk, save_only_model=True)
    assert checkpoints(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weights_that_are_not_finite_are_not_saved(train, tmp_path, value):
    with pytest.raises(DivergenceError, match=r"token_embedding\.weight .* after step 3: .*checkpoint-2"):
        train(Spoil(3, value))
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_without_checkpoints_the_end_of_the_training_looks_at_the_weights(train):
    with pytest.raises(DivergenceError, match=r"token_embedding\.weight .* There is no checkpoint"):
        train(Spoil(4), save_strategy="no")


def test_a_trainer_that_diverged_goes_on_from_the_checkpoint_that_is_named(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=4)
    trainer.add_callback(Spoil(3))
    with pytest.raises(DivergenceError):
        trainer.train()
    trainer.pop_callback(Spoil)
    trainer.model.load_state_dict(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    assert trainer.train(resume_from_checkpoint=True).global_step == 4


def test_a_model_that_is_not_finite_is_not_trained(train, model):
    model.visual_projection.weight.data[0, 0] = torch.nan
    with pytest.raises(DivergenceError, match=r"cannot be trained: visual_projection\.weight"):
        train()


def test_the_command_ends_with_one_line_and_neither_model_nor_card(tmp_path):
    whole = command(write_pairs(tmp_path), tmp_path / "out", 1, ["--learning_rate", "100", "--warmup_steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        main(whole[whole.index(str(SCRIPT)) + 1 :])
    assert stopped.value.code.startswith("error: ") and "has diverged" in stopped.value.code
    assert not {"model.safetensors", "README.md"} & {path.name for path in (tmp_path / "out").iterdir()}
