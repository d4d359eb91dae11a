"""The Trainer on tiny runs: what it logs, what it decays and clamps, which batches it makes."""

import json
import math

import pytest
import torch
from datasets import Dataset, Image
from transformers import CLIPTextModel, Trainer, TrainingArguments

from modeling_cyclip import (
    CyCLIPDataCollator,
    CyCLIPTrainer,
    CyCLIPTrainingArguments,
    cyclic_regularisers,
    cyclip_loss,
)


LOSS_PARTS = ("contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss")


@pytest.fixture
def make_trainer(model, processor, pairs, tmp_path):
    def make(augment=None, **options):
        options = {
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "logging_steps": 2,
            "save_strategy": "no",
            "disable_tqdm": True,
            # As in the paper: every step has its cyclic terms.
            "cyclic_start_ratio": 0.0,
            "cyclic_warmup_ratio": 0.0,
            **options,
        }
        arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
        return CyCLIPTrainer(
            model, arguments, train_dataset=pairs, eval_dataset=pairs, processing_class=processor, augment=augment
        )

    return make


def turned_and_numbered(image, caption, draws):
    return image.rotate(90), f"{caption} {draws.randrange(10)}"


def test_log_shows_loss_parts_scale_rate_and_recall(make_trainer):
    trainer = make_trainer()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4]
    for log in logs:
        cyclic_loss = log["inmodal_cyclic_loss"] + log["crossmodal_cyclic_loss"]
        assert log["loss"] == pytest.approx(log["contrastive_loss"] + 0.25 * cyclic_loss, rel=1e-5)
        assert 1 <= log["logit_scale"] <= 100
        assert 0 <= log["image_to_text_recall@1"] <= 1 and 0 <= log["text_to_image_recall@1"] <= 1
        assert log["learning_rate"] <= 5e-4 and log["grad_norm"] > 0


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_log_shows_by_how_much_the_cyclic_weights_were_lowered(make_trainer, model, chunk_size):
    model.config.cyclic_max_gradient_share = 0.01
    trainer = make_trainer(gradient_cache_chunk_size=chunk_size, logging_steps=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(0 < log["cyclic_gradient_factor"] < 1 for log in logs)
    for log in logs:
        cyclic_loss = log["cyclic_gradient_factor"] * (log["inmodal_cyclic_loss"] + log["crossmodal_cyclic_loss"])
        assert log["loss"] == pytest.approx(log["contrastive_loss"] + 0.25 * cyclic_loss, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_augmented_views_enter_the_training_loss_and_no_evaluation(make_trainer, chunk_size):
    trainer = make_trainer(turned_and_numbered, gradient_cache_chunk_size=chunk_size)
    trainer.model.config.crossmodal_cyclic_weight = 0.1  # with another weight, the loss needs both terms one by one
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for log in logs:
        contrastive_loss = (log["contrastive_loss"] + log["inmodal_contrastive_loss"]) / 2
        cyclic_loss = 0.25 * log["inmodal_cyclic_loss"] + 0.1 * log["crossmodal_cyclic_loss"]
        assert log["loss"] == pytest.approx(contrastive_loss + cyclic_loss, rel=1e-5)
    assert len(logs) == 2
    metrics = trainer.evaluate()
    assert "eval_contrastive_loss" in metrics and "eval_inmodal_contrastive_loss" not in metrics


def test_terms_of_weight_zero_are_those_of_the_last_batch(make_trainer):
    trainer = make_trainer()
    trainer.model.config.inmodal_cyclic_weight = trainer.model.config.crossmodal_cyclic_weight = 0.0
    seen = []
    compute_loss = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        loss, outputs = compute_loss(model, inputs, return_outputs=True)
        assert outputs.inmodal_cyclic_loss is None and outputs.crossmodal_cyclic_loss is None
        seen.append([term.item() for term in cyclic_regularisers(outputs.image_embeds, outputs.text_embeds)])
        return loss

    trainer.compute_loss = spy
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4]
    for log in logs:
        assert log["loss"] == pytest.approx(log["contrastive_loss"], rel=1e-6)
        terms = log["inmodal_cyclic_loss"], log["crossmodal_cyclic_loss"]
        assert terms == pytest.approx(seen[log["step"] - 1], rel=1e-5)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [2, 4]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3, 4]),
        ({"logging_strategy": "epoch"}, [4]),
        ({"logging_steps": 10, "save_strategy": "steps", "save_steps": 3}, [3, 4]),
    ],
)
def test_the_gradients_norm_is_taken_for_logs_alone(make_trainer, monkeypatch, options, expected):
    trainer = make_trainer(**options)
    norms = []
    take = Trainer._get_grad_norm

    def spy(self, model, grad_norm=None):
        norms.append(self.state.global_step + 1)
        return take(self, model, grad_norm)

    monkeypatch.setattr(Trainer, "_get_grad_norm", spy)
    trainer.train()
    assert norms == expected
    assert all("grad_norm" in log for log in trainer.state.log_history if "loss" in log)


def test_batches_hold_bytes_which_become_the_processors_pixels(make_trainer, pairs):
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    expected = trainer.data_collator([pairs[int(index)] for index in batch["sample_index"]])["pixel_values"]
    inputs = trainer._prepare_inputs(batch)
    assert torch.equal(inputs["pixel_values"], expected)
    assert "attention_mask" not in inputs


def test_augmented_views_are_the_same_for_any_number_of_workers(make_trainer):
    batches = [
        list(make_trainer(turned_and_numbered, dataloader_num_workers=workers).get_train_dataloader())
        for workers in (0, 2)
    ]
    for alone, with_workers in zip(*batches, strict=True):
        assert alone["augmented_input_ids"].shape == alone["input_ids"].shape
        assert not torch.equal(alone["augmented_input_ids"], alone["input_ids"])
        for name in ("augmented_input_ids", "augmented_attention_mask", "augmented_pixel_values", "pixel_values"):
            assert torch.equal(alone[name], with_workers[name])


def test_training_lowers_the_loss(make_trainer):
    trainer = make_trainer(max_steps=100, learning_rate=1e-2)
    trainer.train()
    losses = [log["contrastive_loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.8 * losses[0]


def test_evaluation_reports_means_over_pairs_of_the_loss_and_its_parts(make_trainer, model, processor, pairs):
    trainer = make_trainer(per_device_train_batch_size=12)
    assert trainer.args.per_device_eval_batch_size == 12
    metrics = trainer.evaluate()

    model.eval()
    expected = dict.fromkeys(("loss", *LOSS_PARTS), 0.0)
    for start in (0, 12, 24):  # the last batch holds 8 pairs
        rows = [pairs[index] for index in range(start, min(start + 12, 32))]
        output = model(**trainer.data_collator(rows))
        parts = cyclip_loss(output.image_embeds, output.text_embeds, output.logit_scale)
        for name in expected:
            expected[name] += len(rows) / 32 * getattr(parts, name).item()
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-5)


def test_prediction_reports_what_evaluation_does(make_trainer, pairs):
    trainer = make_trainer()
    metrics, predicted = trainer.evaluate(), trainer.predict(pairs).metrics
    for name in ("loss", *LOSS_PARTS):
        assert predicted[f"test_{name}"] == metrics[f"eval_{name}"]


def test_weights_and_embeddings_decay_but_no_norm_bias_or_scale(make_trainer, model):
    trainer = make_trainer()
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[parameter] for parameter in optimizer.param_groups[0]["params"]}
    others = {names[parameter] for parameter in optimizer.param_groups[1]["params"]}
    assert optimizer.param_groups[0]["weight_decay"] == 0.1 and optimizer.param_groups[1]["weight_decay"] == 0
    assert decayed | others == set(names.values())
    assert others == {
        name for name in names.values() if name.endswith("bias") or "norm" in name or "layrnorm" in name
    } | {"logit_scale"}
    assert "vision_model.embeddings.class_embedding" in decayed
    assert "text_model.embeddings.position_embedding.weight" in decayed


def test_optimizer_has_the_papers_defaults(make_trainer):
    trainer = make_trainer()
    trainer.create_optimizer_and_scheduler(10)
    group = trainer.optimizer.param_groups[0]
    assert (group["initial_lr"], group["betas"], group["eps"]) == (5e-4, (0.9, 0.999), 1e-8)
    assert trainer.args.lr_scheduler_type == "cosine" and trainer.args.max_grad_norm == 0


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_towers_have_rates_of_their_own(make_trainer, model, chunk_size):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        vision_learning_rate=0.0, text_learning_rate=1e-4, learning_rate=1e-3, gradient_cache_chunk_size=chunk_size
    )
    trainer.train()
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {
        names[parameter]: (group["initial_lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == before.keys()
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 1e-3
    assert rates["logit_scale"] == (1e-3, 0)
    assert rates["text_projection.weight"] == (1e-4, 0.1) and rates["text_model.final_layer_norm.bias"] == (1e-4, 0)
    for name, parameter in model.named_parameters():
        if name.startswith(("vision_model.", "visual_projection.")):
            assert rates[name][0] == 0 and torch.equal(parameter, before[name])


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_frozen_tower_stays_while_the_other_learns(make_trainer, model, chunk_size):
    model.vision_model.requires_grad_(False)
    model.visual_projection.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    make_trainer(gradient_cache_chunk_size=chunk_size).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad)


@pytest.mark.parametrize("start, bound", [(4.7, math.log(100)), (-0.5, 0.0)])
def test_logit_scale_is_clamped_after_every_step(make_trainer, model, start, bound):
    model.logit_scale.data.fill_(start)
    make_trainer(max_steps=1, learning_rate=1e-6).train()
    assert model.logit_scale.item() == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize(
    "start, warmup, factors",
    [
        (0.0, 0.5, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (0.5, 0.5, [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]),
        (0.25, 0.0, [0, 0, 1, 1, 1, 1, 1, 1]),
        (0.3, 0.7, [0, 0, 0, 0.6 / 5.6, 1.6 / 5.6, 2.6 / 5.6, 3.6 / 5.6, 4.6 / 5.6]),
    ],
)
def test_cyclic_weights_start_and_rise_linearly(make_trainer, start, warmup, factors):
    trainer = make_trainer(max_steps=8, logging_steps=1, cyclic_start_ratio=start, cyclic_warmup_ratio=warmup)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for log, factor in zip(logs, factors, strict=True):
        cyclic_loss = 0.25 * (log["inmodal_cyclic_loss"] + log["crossmodal_cyclic_loss"])
        assert log["loss"] == pytest.approx(log["contrastive_loss"] + factor * cyclic_loss, rel=1e-5)
    assert trainer.model.config.inmodal_cyclic_weight == 0.25


def test_last_short_training_batch_is_dropped(make_trainer, pairs):
    trainer = make_trainer(per_device_train_batch_size=12)
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["pixel_values"]) for batch in batches] == [12, 12]


def test_checkpoint_holds_model_and_processor(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "optimizer.pt"} <= names


def test_other_models_and_arguments_are_refused(config, model, processor, tmp_path):
    with pytest.raises(
        ValueError, match="CLIPTextModel has no get_image_features and no get_text_features and no logit"
    ):
        CyCLIPTrainer(
            CLIPTextModel(config.text_config),
            CyCLIPTrainingArguments(str(tmp_path)),
            processing_class=processor,
        )
    with pytest.raises(ValueError, match="CyCLIPTrainingArguments"):
        CyCLIPTrainer(model, TrainingArguments(str(tmp_path)), processing_class=processor)
    with pytest.raises(ValueError, match="processing_class"):
        CyCLIPTrainer(model, CyCLIPTrainingArguments(str(tmp_path)))


def test_a_set_smaller_than_a_batch_is_refused(make_trainer):
    with pytest.raises(ValueError, match="32 pairs, fewer than one batch of 64"):
        make_trainer(per_device_train_batch_size=64).train()


@pytest.mark.parametrize("wrap", [lambda rows: {"train_dataset": rows}, lambda rows: {"eval_dataset": {"a": rows}}])
def test_streams_are_refused(model, processor, pairs, tmp_path, wrap):
    arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="by index"):
        CyCLIPTrainer(model, arguments, processing_class=processor, **wrap(pairs.to_iterable_dataset()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gradient_accumulation_steps": 2}, "per_device_train_batch_size"),
        ({"cyclic_warmup_ratio": 1.5}, "cyclic_warmup_ratio"),
        ({"cyclic_start_ratio": -0.1}, "cyclic_start_ratio"),
        ({"cyclic_start_ratio": 0.6, "cyclic_warmup_ratio": 0.5}, "together at most 1"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"auto_find_batch_size": True}, "gradient_cache_chunk_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
        ({"deepspeed": "zero2.json"}, "FSDP"),
    ],
)
def test_arguments_that_would_break_the_loss_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        CyCLIPTrainingArguments(output_dir=str(tmp_path), **options)


def test_mixed_precision_trains_with_a_float32_loss(make_trainer, monkeypatch):
    trainer = make_trainer(bf16=True, logging_steps=1)
    compute_loss, expected = trainer.model.compute_loss, []

    def remembering(image_embeds, text_embeds, logit_scale, *args, **kwargs):
        embeds = image_embeds.detach().double(), text_embeds.detach().double()
        expected.append(cyclip_loss(*embeds, logit_scale.detach().double()).loss.item())
        return compute_loss(image_embeds, text_embeds, logit_scale, *args, **kwargs)

    monkeypatch.setattr(trainer.model, "compute_loss", remembering)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses == pytest.approx(expected, rel=1e-6) and len(losses) == 4


def test_training_goes_on_when_it_is_asked_for_again(make_trainer, model, pairs):
    trainer = make_trainer()
    trainer.train()
    before = model.text_projection.weight.detach().clone()
    trainer.train_dataset = pairs.select(range(8))
    trainer.train()
    assert not torch.equal(model.text_projection.weight, before)


def test_a_broken_image_in_a_decoded_column_ends_no_training_and_no_evaluation(model, processor, pairs, tmp_path):
    rows = [
        {**row, "image": {"bytes": b"no image", "path": None}} if not index else row for index, row in enumerate(pairs)
    ]
    broken = Dataset.from_list(rows, features=pairs.features).cast_column("image", Image())
    options = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "num_train_epochs": 1}
    arguments = CyCLIPTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", **options)
    trainer = CyCLIPTrainer(
        model, arguments, train_dataset=broken, eval_dataset=broken.select(range(10)), processing_class=processor
    )
    trainer.train()
    assert trainer.state.log_history[-1]["broken_images"] == 1
    output = model(**trainer.data_collator([pairs[index] for index in range(1, 10)]))
    expected = cyclip_loss(output.image_embeds, output.text_embeds, output.logit_scale)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)


def test_workers_of_an_evaluation_serve_the_next(make_trainer):
    trainer = make_trainer(dataloader_persistent_workers=True, dataloader_num_workers=1)
    assert trainer.get_eval_dataloader() is trainer.get_eval_dataloader()


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_optimizers_with_modes_are_in_training_mode_at_every_step(make_trainer, chunk_size, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.optim.AdamW, "train", lambda self: modes.append("train"), raising=False)
    make_trainer(gradient_cache_chunk_size=chunk_size).train()
    assert modes == ["train"] * 4


def test_a_collator_may_ask_for_the_loss(model, processor, pairs, tmp_path):
    collator = CyCLIPDataCollator(processor)
    arguments = CyCLIPTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, per_device_train_batch_size=8, save_strategy="no"
    )
    trainer = CyCLIPTrainer(
        model, arguments, train_dataset=pairs, data_collator=lambda rows: {**collator(rows), "return_loss": True}
    )
    assert trainer.train().global_step == 1


def test_data_with_other_columns_and_functions_without_use_are_refused(model, processor, pairs, tmp_path):
    arguments = CyCLIPTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="no column `caption`, but image, text"):
        renamed = pairs.rename_column("caption", "text")
        CyCLIPTrainer(model, arguments, eval_dataset=renamed, processing_class=processor)
    with pytest.raises(ValueError, match="`caption` must hold strings or lists of strings"):
        numbered = pairs.remove_columns("caption").add_column("caption", list(range(len(pairs))))
        CyCLIPTrainer(model, arguments, train_dataset=numbered, processing_class=processor)
    options = {"train_dataset": pairs, "processing_class": processor}
    with pytest.raises(ValueError, match="no use for `compute_metrics`"):
        CyCLIPTrainer(model, arguments, compute_metrics=len, **options)
    rates = CyCLIPTrainingArguments(str(tmp_path), use_cpu=True, text_learning_rate=1e-5)
    with pytest.raises(ValueError, match="parameter groups"):
        CyCLIPTrainer(model, rates, optimizers=(torch.optim.SGD(model.parameters()), None), **options)


def test_the_record_of_a_run_says_the_code_that_it_began_with(make_trainer, tmp_path, monkeypatch):
    commits = iter(["at the start", "edited meanwhile"])
    monkeypatch.setattr("modeling_cyclip.run_record.commit", lambda: next(commits))
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    for folder in ("checkpoint-2", "checkpoint-4", "."):
        assert json.loads((tmp_path / folder / "run.json").read_text())["commit"] == "at the start"


def test_processes_that_accelerate_does_not_join_are_refused(tmp_path, monkeypatch):
    # An accelerator of a kind that trains alone, in a process that torchrun started as one of two.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"2 processes were started \(WORLD_SIZE\)"):
        CyCLIPTrainingArguments(str(tmp_path))
