"""Zero-shot accuracy as a metric of every evaluation: logged, compared, and the same as evaluation's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import TrainerCallback

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.evaluation.during_training import ZeroShotMetrics
from modeling_cyclip.evaluation.embeddings import class_embeddings, image_embeddings
from modeling_cyclip.evaluation.evaluation_set import GENERAL_TEMPLATES
from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"
TOP1 = "eval_zero_shot_top1"


class Evaluations(TrainerCallback):
    def __init__(self):
        self.metrics = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.metrics.append(dict(metrics))


@pytest.fixture
def make_trainer(model, processor, pairs, data_folder, tmp_path):
    def make(extra_metrics=None, eval_dataset=None, callbacks=(), **options):
        arguments = CyCLIPTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, max_steps=6, logging_steps=2,
            eval_strategy="steps", eval_steps=2, save_steps=2, disable_tqdm=True, **options,
        )  # fmt: skip
        return CyCLIPTrainer(
            model, arguments, pairs, eval_dataset, processor, callbacks=list(callbacks),
            extra_metrics=extra_metrics or ZeroShotMetrics(data_folder, processor),
        )  # fmt: skip

    return make


def test_top1_is_that_of_the_most_similar_class(model, processor, data_folder):
    metrics = ZeroShotMetrics(data_folder, processor, batch_size=5)(model.train())
    assert model.training
    rows = load_dataset(data_folder, split="test")
    names = [name.replace("_", " ") for name in rows.features["label"].names]
    image_embeds = image_embeddings(model, processor, rows["img"])
    guesses = (image_embeds @ class_embeddings(model, processor, names, GENERAL_TEMPLATES).T).argmax(dim=1)
    assert metrics["zero_shot_top1"] == (guesses == torch.tensor(rows["label"][:])).double().mean().item()


@pytest.mark.parametrize("sets", ["none", "one", "two"])
def test_every_evaluation_logs_it_once(make_trainer, pairs, sets):
    seen = Evaluations()
    eval_dataset = {"none": None, "one": pairs, "two": {"a": pairs, "b": pairs}}[sets]
    trainer = make_trainer(eval_dataset=eval_dataset, callbacks=[seen])
    trainer.train()
    logged = [log for log in trainer.state.log_history if TOP1 in log]
    assert [log["step"] for log in logged] == [2, 4, 6]
    assert len([metrics for metrics in seen.metrics if TOP1 in metrics]) == 3
    metrics = trainer.evaluate()
    assert TOP1 in metrics
    assert ("eval_loss" in metrics, "eval_a_loss" in metrics) == (sets == "one", sets == "two")


@pytest.mark.parametrize("sets", ["none", "one"])
def test_the_best_checkpoint_is_chosen_by_it(make_trainer, pairs, sets):
    values = iter([0.3, 0.9, 0.5])
    trainer = make_trainer(
        extra_metrics=lambda model: {"zero_shot_top1": next(values)},
        eval_dataset=pairs if sets == "one" else None,
        load_best_model_at_end=True,
        metric_for_best_model=TOP1,
        save_total_limit=1,
    )
    trainer.train()
    assert trainer.state.best_metric == 0.9
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")


def test_data_without_labels_is_refused(pairs, processor, tmp_path):
    pairs.select_columns("image").to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="no class labels"):
        ZeroShotMetrics(str(tmp_path), processor)


def test_run_cyclip_measures_a_folder_of_classes(tmp_path):
    rows = ["image,caption"]
    for level in range(4):
        for colour in COLOURS:
            (tmp_path / "classes" / "test" / colour).mkdir(parents=True, exist_ok=True)
            image = coloured_image(colour, level)
            image.save(tmp_path / f"{colour}{level}.png")
            image.save(tmp_path / "classes" / "test" / colour / f"{level}.png")
            rows.append(f"{colour}{level}.png,a {colour} square number {level}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, SCRIPT, "--model_size", "nano", "--image_size", "16", "--patch_size", "8", "--vocab_size", "560",
         "--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--train_file", tmp_path / "pairs.csv",
         "--per_device_train_batch_size", "8", "--max_steps", "2", "--eval_zero_shot", tmp_path / "classes",
         "--output_dir", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert 0 <= json.loads((out / "eval_results.json").read_text())[TOP1] <= 1
