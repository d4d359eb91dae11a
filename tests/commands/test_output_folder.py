"""A folder that a training must not write into is refused before anything is read."""

import pytest

from modeling_cyclip import CyCLIPTrainingArguments
from modeling_cyclip.build_model import ModelArguments
from modeling_cyclip.commands.train_checks import check_output_folder


def check(folder, lora_rank=None, **options):
    model_args = ModelArguments(model_size="nano")
    model_args.lora_rank = lora_rank
    check_output_folder(model_args, CyCLIPTrainingArguments(str(folder), use_cpu=True, **options))


def test_a_folder_is_made(tmp_path):
    check(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be made"):
        check(tmp_path / "file" / "out")


def test_checkpoints_of_an_earlier_training_are_gone_on_from_or_left_alone(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match="--resume_from_checkpoint, or start anew"):
        check(tmp_path)
    check(tmp_path, resume_from_checkpoint=True)


@pytest.mark.parametrize("name, lora_rank", [("config.json", 4), ("adapter_config.json", None)])
def test_models_and_adapters_do_not_meet_in_a_folder(tmp_path, name, lora_rank):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"has the {name} of another run"):
        check(tmp_path, lora_rank)
