"""Signs of a training that goes wrong: each is said once, when it lasts, and healthy logs say nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments, health
from modeling_cyclip.health import SIGNS, HealthCallback, batch_statistics, caption_keys, signs_at_the_end
from modeling_cyclip.optimizer import ClampLogitScale


HEALTHY = {
    "loss": 3.4, "contrastive_loss": 3.0, "logit_scale": 15.0, "learning_rate": 5e-4, "image_cosine": 0.4,
    "text_cosine": 0.6, "repeated_captions": 0.0,
}  # fmt: skip
LN_128 = math.log(128)

BAD = [
    (health.nothing_learnt, {"contrastive_loss": LN_128, "loss": LN_128}, "--overfit_check 64"),
    (health.collapsed, {"contrastive_loss": 0.95 * LN_128, "loss": 4.7, "text_cosine": 0.99}, "text embeddings"),
    (health.scale_at_bound, {"logit_scale": 100.0}, "bound of 100"),
    (health.scale_sunk, {"logit_scale": 1.1}, "sunk to 1.10"),
    (health.cyclic_outweighs, {"loss": 9.0, "contrastive_loss": 4.0}, "cyclic_max_gradient_share=1"),
    (health.captions_repeat, {"repeated_captions": 0.25}, "25 % of the captions"),
]


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr(health.logger, "warning", messages.append)
    return messages


def feed(logs, every=100, peak=5e-4, world_size=2):
    callback = HealthCallback()
    arguments = SimpleNamespace(learning_rate=peak, world_size=world_size)
    for number, log in enumerate(logs, 1):
        state = SimpleNamespace(global_step=every * number, train_batch_size=64, is_world_process_zero=True)
        callback.on_log(arguments, state, None, logs=log)


def test_healthy_logs_say_nothing(said):
    feed([HEALTHY] * 50)
    assert said == []


def test_the_contrastive_term_of_augmented_views_is_no_cyclic_one(said):
    feed([{**HEALTHY, "inmodal_contrastive_loss": 4.6, "loss": (3.0 + 4.6) / 2 + 2.4}] * 50)
    assert said == []


@pytest.mark.parametrize("sign, change, words", BAD)
def test_each_sign_is_said_once_and_only_it(said, sign, change, words):
    feed([HEALTHY] + [{**HEALTHY, **change}] * 20)
    (message,) = said
    assert words in message


@pytest.mark.parametrize("contrastive, cosine", [(LN_128, 0.4), (0.95 * LN_128, 0.99)])
def test_cyclic_terms_are_a_cause_where_the_loss_has_them(said, contrastive, cosine):
    bad = {**HEALTHY, "contrastive_loss": contrastive, "loss": contrastive, "image_cosine": cosine}
    feed([bad] * 20)
    assert len(said) == 1 and "cyclic" not in said[0]
    feed([{**bad, "loss": contrastive + 1e-3}] * 20)
    assert "cyclic terms" in said[1] and "cyclic_start_ratio" in said[1]


def test_terms_whose_gradient_is_bounded_may_be_large(said):
    feed([{**HEALTHY, "loss": 9.0, "contrastive_loss": 4.0, "cyclic_gradient_factor": 0.1}] * 20)
    assert said == []


@pytest.mark.parametrize("sign, change, words", BAD)
def test_a_sign_must_last(said, sign, change, words):
    bad = {**HEALTHY, **change}
    feed(([bad] * (health.MIN_LOGS - 1) + [HEALTHY]) * 5)
    # However often is logged, it must last some steps too.
    if SIGNS[sign]:
        feed([HEALTHY] + [bad] * SIGNS[sign], every=1)
    assert said == []


def test_cold_rates_checkpoints_at_the_bound_and_solved_batches_are_no_signs(said):
    feed([{**HEALTHY, "contrastive_loss": LN_128, "image_cosine": 1.0, "learning_rate": 1e-5}] * 20)
    feed([{**HEALTHY, "logit_scale": 100.0}] * 20)
    feed([{**HEALTHY, "contrastive_loss": 0.01, "loss": 0.5, "image_cosine": 0.97}] * 20)
    assert said == []


@pytest.mark.parametrize("sign, change, words", BAD)
def test_the_end_of_a_training_is_read_however_short_it_was(sign, change, words):
    bad = {**HEALTHY, **change}
    shown = signs_at_the_end([HEALTHY, bad, bad, bad, bad, bad, {"train_runtime": 1.0}], 128)
    assert list(shown) == [sign] and words in shown[sign]
    # What is past is no sign any more. The last log of a schedule that ends at zero says as much as the others.
    assert signs_at_the_end([bad] * 20 + [HEALTHY] + [{**bad, "learning_rate": 0.0}], 128) == {}
    assert signs_at_the_end([{"train_runtime": 1.0}], 128) == {}
    if sign is not health.scale_at_bound:  # which must have risen
        assert list(signs_at_the_end([bad], 128)) == [sign]


@pytest.mark.parametrize("num_steps, num_said", [(49, 0), (80, 1), (200, 0)])
def test_a_short_training_that_learnt_nothing_says_so_at_its_end(said, num_steps, num_said):
    arguments = SimpleNamespace(world_size=2)
    guessing = {**HEALTHY, "contrastive_loss": LN_128}
    for last, count in ((guessing, num_said), (HEALTHY, 0)):
        state = SimpleNamespace(
            global_step=num_steps, train_batch_size=64, is_world_process_zero=True, log_history=[last] * 5
        )
        HealthCallback().on_train_end(arguments, state, None)
        assert len(said) == count
        said.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bound_is_seen_in_every_precision(model, said, dtype):
    model.to(dtype).logit_scale.data.fill_(4.7)
    ClampLogitScale().on_optimizer_step(None, None, None, model)
    feed([HEALTHY] + [{**HEALTHY, "logit_scale": model.logit_scale.exp().item()}] * 20)
    assert len(said) == 1 and "bound of 100" in said[0]
    said.clear()
    feed([HEALTHY] + [{**HEALTHY, "logit_scale": 98.5}] * 20)
    assert said == []


def test_cosines_of_embeddings_whose_norms_are_rounded():
    image_embeds, text_embeds = F.normalize(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    images, texts = image_embeds.bfloat16(), text_embeds.bfloat16()
    statistics = batch_statistics(images, texts, torch.arange(3))
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    for name, embeds in (("image_cosine", images.float()), ("text_cosine", texts.float())):
        assert statistics[name] == pytest.approx((embeds @ embeds.T)[off_diagonal].mean().item(), abs=1e-6)


def test_statistics_of_a_batch():
    torch.manual_seed(0)
    image_embeds, text_embeds = F.normalize(torch.randn(2, 7, 5) + 1, dim=-1)
    off_diagonal = ~torch.eye(7, dtype=torch.bool)
    statistics = batch_statistics(image_embeds, text_embeds, torch.tensor([3, 1, 3, 3, 2, 4, 5]))
    assert statistics["image_cosine"] == pytest.approx(
        (image_embeds @ image_embeds.T)[off_diagonal].mean().item(), abs=1e-6
    )
    assert statistics["text_cosine"] == pytest.approx(
        (text_embeds @ text_embeds.T)[off_diagonal].mean().item(), abs=1e-6
    )
    assert statistics["repeated_captions"] == pytest.approx(2 / 7)


def test_captions_are_compared_whatever_their_padding():
    short = caption_keys(torch.tensor([[5, 7, 9], [5, 9, 7]]), torch.tensor([[1, 1, 1], [1, 1, 1]]))
    long = caption_keys(torch.tensor([[5, 7, 9, 9], [5, 7, 0, 9]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    assert short[0] == long[0]
    assert len(torch.cat([short, long]).unique()) == 3


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_the_trainer_logs_them_and_warns_of_a_frozen_loss(model, processor, pairs, tmp_path, said, chunk_size):
    same = pairs.map(lambda row: {"caption": ["one caption", "one caption"]})
    arguments = CyCLIPTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, max_steps=6, logging_steps=1,
        save_strategy="no", disable_tqdm=True, no_duplicate_captions=False, gradient_cache_chunk_size=chunk_size,
    )  # fmt: skip
    trainer = CyCLIPTrainer(model, arguments, train_dataset=same, processing_class=processor)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["repeated_captions"] == 7 / 8 for log in logs)
    assert all(log["text_cosine"] == pytest.approx(1, abs=1e-5) for log in logs)
    assert [message for message in said if "88 % of the captions" in message]
