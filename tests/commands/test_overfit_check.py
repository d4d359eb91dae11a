"""The check trains on a few pairs, and its exit says whether they were memorised."""

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from modeling_cyclip import CyCLIPTrainingArguments
from modeling_cyclip.commands.train_checks import overfit_report, set_up_overfit_check
from modeling_cyclip.data.captions import DataArguments
from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"
SMALL = [
    "--model_size", "nano", "--image_size", "16", "--patch_size", "8", "--vocab_size", "560", "--use_cpu",
    "--disable_tqdm", "true", "--report_to", "none",
]  # fmt: skip


def test_four_colours_are_memorised(tmp_path):
    rows = ["image,caption"]
    for colour in [*COLOURS, "red"]:
        coloured_image(colour).save(tmp_path / f"{colour}.png")
        rows += [f"{colour}.png,", f"{colour}.png,a {colour} square"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    result = subprocess.run(
        [sys.executable, SCRIPT, *SMALL, "--train_file", tmp_path / "pairs.csv", "--output_dir", tmp_path / "out",
         "--overfit_check", "4", "--max_steps", "60", "--warmup_steps", "10000", "--push_to_hub"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Overfit check passed: after 60 steps the recall@1 within a batch is 100 %" in result.stdout
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_what_is_not_memorised_comes_with_the_next_steps():
    log = {"loss": 4.3, "contrastive_loss": 4.2, "image_to_text_recall@1": 1.0, "text_to_image_recall@1": 0.5}
    memorised, message = overfit_report([{**log, "step": 300}, {"train_loss": 4.5, "step": 300}])
    assert not memorised and "recall@1 within a batch is 50 %" in message and "--inmodal_cyclic_weight 0" in message


def test_arguments_are_those_of_a_short_run_on_few_pairs(tmp_path):
    data_args = DataArguments(train_file="a.csv", overfit_check=48, eval_zero_shot="cifar10")
    training_args = CyCLIPTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, eval_strategy="epoch", warmup_steps=10_000, num_train_epochs=64
    )
    dataset = Dataset.from_dict({"caption": list(map(str, range(60)))})
    pairs = set_up_overfit_check(dataset, data_args.overfit_check, training_args)
    assert pairs["caption"][:] == dataset["caption"][:48] and data_args.eval_zero_shot is None
    assert training_args.per_device_train_batch_size == 48
    assert (training_args.max_steps, training_args.warmup_steps) == (300, 30)
    assert training_args.eval_strategy == training_args.save_strategy == "no"

    assert len(set_up_overfit_check(dataset.select(range(5)), 48, training_args)) == 5
    assert training_args.per_device_train_batch_size == 5
    with pytest.raises(ValueError, match=r"needs two pairs.*there are 1"):
        set_up_overfit_check(dataset.select(range(1)), 48, training_args)
    with pytest.raises(ValueError, match="at least 2"):
        DataArguments(train_file="a.csv", overfit_check=1)
