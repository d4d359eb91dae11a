"""Dual encoders of transformers: trained, resumed, saved, opened elsewhere and measured as CLIPs are."""

import functools
import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AlignConfig,
    AlignModel,
    AutoModel,
    AutoProcessor,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    SiglipModel,
    VisionTextDualEncoderModel,
    pipeline,
)

from modeling_cyclip import CyclicTerms, CyCLIPDataCollator, CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.commands import evaluate, train
from modeling_cyclip.data.tokenizer import padding_of
from modeling_cyclip.dual_encoder import check_embeddings, train_with_terms
from modeling_cyclip.evaluation.embeddings import image_embeddings, load_checkpoint, text_embeddings
from modeling_cyclip.gradient_cache import cached_step
from modeling_cyclip.health import Reading, nothing_learnt
from modeling_cyclip.optimizer import decay_parameter_names, set_tower_learning_rates
from tests.conftest import coloured_image
from tests.distributed import run_distributed
from tests.dual_encoders import KINDS, TOWER, bert_tokenizer, clip
from tests.invariant.test_trajectory import distance, read_weights
from tests.invariant.trajectory import FSDP_SCRIPT, SCRIPT, read_trajectory, run, run_killed, write_pairs
from tests.invariant.trajectory import command as launched


# Two pretrained towers, of which the vision tower stays as it is.
LIT = "locked vision tower"
# These have a loss, or towers, of their own. The other kinds are much like a CLIP.
QUICK = ("siglip", "vision-text-dual-encoder", LIT)
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in (*KINDS, LIT)]
)
# Where processes start, the first kind stands for the others.
each_kind_slowly = pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=[pytest.mark.slow] * (name != "siglip")) for name in (*KINDS, LIT)]
)

TEN_STEPS = [
    "--use_cpu", "--max_steps", "10", "--logging_steps", "1", "--learning_rate", "1e-3", "--warmup_steps", "2",
    "--cyclic_start_ratio", "0", "--cyclic_warmup_ratio", "0.5", "--cyclic_max_gradient_share", "0.1",
    "--disable_tqdm", "true", "--caption_column", "captions", "--save_steps", "5", "--log_level", "warning",
]  # fmt: skip


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def make(kind):
    torch.manual_seed(0)
    return {**KINDS, "clip": clip}[kind]()


@pytest.fixture(scope="module")
def model_arguments(tmp_path_factory):
    """What `cyclip train` is told of the model, which lies in a folder."""

    @functools.cache
    def arguments(kind):
        folder = tmp_path_factory.mktemp("model")
        model, processor = make("vision-text-dual-encoder" if kind == LIT else kind)
        if kind != LIT:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            return ["--model_name_or_path", str(folder)]
        model.vision_model.save_pretrained(folder / "vision")
        processor.image_processor.save_pretrained(folder / "vision")
        model.text_model.save_pretrained(folder / "text")
        processor.tokenizer.save_pretrained(folder / "text")
        return ["--vision_model", str(folder / "vision"), "--text_model", str(folder / "text"), "--freeze_vision"]

    return arguments


@pytest.fixture(scope="module")
def trained(model_arguments, train_file, tmp_path_factory):
    """The output folder of a training of ten steps in one process."""

    @functools.cache
    def output_dir(kind, *arguments):
        folder = tmp_path_factory.mktemp("trained")
        files = ["--train_file", str(train_file), "--output_dir", str(folder)]
        batch = ["--per_device_train_batch_size", "32"]
        train.main([*model_arguments(kind), *TEN_STEPS, *files, *batch, *arguments])
        return folder

    return output_dir


def in_processes(number, kind, model_arguments, train_file, output_dir, *arguments):
    """The command of the same training in processes of its own."""
    batch = ["--per_device_train_batch_size", str(32 // number)]
    told = [*model_arguments(kind), *TEN_STEPS, *batch, *arguments]
    prefix = launched(train_file, output_dir, number, told)
    first = prefix.index(str(SCRIPT))
    return [*prefix[: first + 1], *told, "--train_file", str(train_file), "--output_dir", str(output_dir)]


@each_kind
def test_the_loss_falls_and_its_parts_are_logged(trained, kind):
    logs = [log for log in read_trajectory(trained(kind)) if "loss" in log]
    assert len(logs) == 10
    # The cyclic terms come in over the first five steps.
    assert logs[-1]["contrastive_loss"] < logs[0]["contrastive_loss"]
    history = json.loads((trained(kind) / "trainer_state.json").read_text())["log_history"]
    assert all(0 < log["cyclic_gradient_factor"] <= 1 for log in history[1:10])
    assert all(("logit_bias" in log) == (kind == "siglip") for log in history[:10])


@each_kind
def test_the_checkpoint_opens_in_plain_transformers_with_equal_logits(trained, kind):
    folder = str(trained(kind))
    plain, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    expected = VisionTextDualEncoderModel if kind == LIT else type(make(kind)[0])
    assert type(plain) is expected and not isinstance(plain, CyCLIPModel)
    config = json.loads((trained(kind) / "config.json").read_text())
    assert config["architectures"] == [expected.__name__] and "cyclic" not in json.dumps(config)

    images = [coloured_image(colour) for colour in ("red", "blue", "green")]
    captions = ["a red square", "a photo of a blue picture number 3"]
    padding = {"padding": padding_of(plain.config), "max_length": processor.tokenizer.model_max_length}
    with torch.no_grad():
        logits = plain(**processor(text=captions, images=images, return_tensors="pt", **padding)).logits_per_image
    model, processor = load_checkpoint(folder, "fp32", torch.device("cpu"))
    cosines = image_embeddings(model, processor, images) @ text_embeddings(model, processor, captions).T
    bias = model.logit_bias if kind == "siglip" else 0
    torch.testing.assert_close(logits, cosines * model.logit_scale.exp() + bias, rtol=1e-5, atol=1e-5)
    # What the Trainer computes of the same inputs.
    train_with_terms(model, CyclicTerms())
    inputs = processor(text=captions, images=images, return_tensors="pt", **padding)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits_per_image, logits, rtol=1e-5, atol=1e-5)


def assert_is_the_same_training(output_dir, expected_dir):
    """But for rounding, which every step of AdamW amplifies where a gradient is zero but for that."""
    pairs = zip(read_trajectory(output_dir), read_trajectory(expected_dir), strict=True)
    assert all(actual == pytest.approx(expected, rel=2e-3, abs=2e-5) for actual, expected in pairs)
    weights, expected = read_weights(output_dir), read_weights(expected_dir)
    assert weights.keys() == expected.keys() and weights["logit_scale"].shape == expected["logit_scale"].shape
    assert distance(weights, expected) < 1e-3


@each_kind
def test_cached_it_is_the_same_training(trained, kind):
    assert_is_the_same_training(trained(kind, "--gradient_cache_chunk_size", "8"), trained(kind))


@each_kind_slowly
def test_in_two_processes_it_is_the_same_training(trained, model_arguments, train_file, tmp_path, kind):
    run(in_processes(2, kind, model_arguments, train_file, tmp_path))
    assert_is_the_same_training(tmp_path, trained(kind))


@each_kind_slowly
def test_killed_and_resumed_is_the_same_training_bit_for_bit(model_arguments, train_file, tmp_path, kind):
    command = functools.partial(in_processes, 1, kind, model_arguments, train_file)
    run(command(tmp_path / "whole"))
    run_killed(command(tmp_path / "killed"), tmp_path / "killed" / "checkpoint-5")
    run(command(tmp_path / "killed", "--resume_from_checkpoint"))
    expected, actual = read_weights(tmp_path / "whole"), read_weights(tmp_path / "killed")
    assert expected.keys() == actual.keys()
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())


def in_training(kind, dtype):
    model, processor = make("vision-text-dual-encoder" if kind == LIT else kind)
    model.vision_model.requires_grad_(kind != LIT)
    train_with_terms(model.to(dtype), CyclicTerms(0.3, 0.2, cyclic_max_gradient_share=0.5))
    return model.train(), processor


def batch_of(processor, model, rows):
    collator = CyCLIPDataCollator(processor, padding=padding_of(model.config))
    features = [{"image": coloured_image("red", row), "caption": f"red number {row} of a photo"} for row in rows]
    batch = collator(features)
    return {**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@each_kind
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_cached_gradients_equal_those_of_the_whole_batch(kind, dtype, tolerance):
    model, processor = in_training(kind, dtype)
    batch = batch_of(processor, model, range(12))
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    parts, _, _ = cached_step(
        model, batch, 5, compute_loss=model.compute_loss, backward=torch.Tensor.backward, no_sync=nullcontext
    )
    assert parts.loss.item() == pytest.approx(loss.item(), rel=tolerance)
    scale = max(gradient.norm() for gradient in expected.values())
    for name, gradient in gradients_of(model).items():
        # Some gradients (biases of the keys) are zero but for rounding, so the largest sets the scale.
        assert (gradient - expected[name]).norm() <= tolerance * (expected[name].norm() + 1e-2 * scale), name


def gradients_of_a_share(rank, world_size, kind):
    """The loss and the gradients of this process's pairs of 12, as data parallelism averages them."""
    model, processor = in_training(kind, torch.float64)
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    output = wrapped(**batch_of(processor, model, range(rank, 12, world_size)), return_loss=True)
    output.loss.backward()
    return output.loss.item(), {name: gradient.numpy() for name, gradient in gradients_of(model).items()}


@each_kind_slowly
def test_gradients_of_two_processes_equal_those_of_one(tmp_path, kind):
    expected_loss, expected = gradients_of_a_share(0, 1, kind)
    for loss, gradients in run_distributed(gradients_of_a_share, 2, tmp_path, kind):
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        for name, gradient in expected.items():
            np.testing.assert_allclose(gradients[name], gradient, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_without_cyclic_terms_the_loss_is_the_models_own(kind):
    model, processor = make(kind)
    batch = batch_of(processor, model.eval(), range(6))
    own = model(**batch, return_loss=True)
    train_with_terms(model, CyclicTerms(0, 0))
    ours = model(**batch, return_loss=True)
    torch.testing.assert_close(ours.loss, own.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.logits_per_text, own.logits_per_text, rtol=1e-5, atol=1e-5)


@each_kind
def test_evaluate_measures_what_was_trained(trained, train_file, tmp_path, kind):
    rows = [json.loads(line) for line in train_file.read_text().splitlines()][:24]
    for row in rows:
        row["image"] = str(train_file.parent / row["image"])
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset", str(table), "--caption_column", "captions", "--tasks", "retrieval"]
    evaluate.main(["--model_name_or_path", str(trained(kind)), *arguments, "--output_dir", str(tmp_path / "figures")])
    (results,) = json.loads((tmp_path / "figures" / "results.json").read_text())["results"].values()

    model, processor = load_checkpoint(str(trained(kind)), "fp32", torch.device("cpu"))
    images = image_embeddings(model, processor, [row["image"] for row in rows])
    captions = text_embeddings(model, processor, [caption for row in rows for caption in row["captions"]])
    best = (captions @ images.T).argmax(dim=1)
    found = (best == torch.arange(24).repeat_interleave(2)).double().mean().item()
    assert results["retrieval"]["text_to_image_recall@1"]["value"] == pytest.approx(found)


# The pipeline does not know the type vision-text-dual-encoder.
@pytest.mark.parametrize("kind", ["siglip", "chinese_clip", "altclip", "metaclip_2"])
def test_the_zero_shot_pipeline_of_transformers_opens_it(trained, kind):
    folder, labels = str(trained(kind)), ["red", "blue", "green number 3"]
    answers = pipeline("zero-shot-image-classification", model=folder)(
        coloured_image("red"), candidate_labels=labels, hypothesis_template="a {} square"
    )
    model, processor = load_checkpoint(folder, "fp32", torch.device("cpu"))
    captions = text_embeddings(model, processor, [f"a {label} square" for label in labels])
    logits = (image_embeddings(model, processor, [coloured_image("red")]) @ captions.T * model.logit_scale.exp())[0]
    scores = (logits + model.logit_bias).sigmoid() if kind == "siglip" else logits.softmax(dim=0)
    scores = dict(zip(labels, scores.tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(scores, rel=1e-4)


def sharded(command):
    return [str(FSDP_SCRIPT) if word == str(SCRIPT) else word for word in command]


@pytest.mark.slow
def test_sharded_by_fsdp_it_is_the_same_training(trained, model_arguments, train_file, tmp_path):
    run(sharded(in_processes(2, "siglip", model_arguments, train_file, tmp_path)))
    assert_is_the_same_training(tmp_path, trained("siglip"))


@pytest.mark.slow
def test_a_model_that_fsdp_cannot_shard_is_refused(model_arguments, train_file, tmp_path):
    with pytest.raises(AssertionError, match="a VisionTextDualEncoderModel does not name them: train it without FSDP"):
        run(sharded(in_processes(2, "vision-text-dual-encoder", model_arguments, train_file, tmp_path)))


@each_kind
def test_in_bfloat16_the_loss_starts_and_falls_as_it_does(trained, kind):
    half, whole = (read_trajectory(trained(kind, *arguments)) for arguments in (["--bf16", "true"], []))
    assert half[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.02)
    assert half[9]["contrastive_loss"] < half[0]["contrastive_loss"]


def test_gradients_that_mixed_precision_has_scaled_are_scaled_alike():
    # As a gradient scaler does in fp16. The cached step has two backward passes, of which the first one is scaled.
    model, processor = in_training("siglip", torch.float64)
    batch = batch_of(processor, model, range(8))
    gradients = []
    for scale in (1.0, 1024.0):
        model.zero_grad()
        backward = lambda loss, scale=scale: (loss * scale).backward()  # noqa: E731
        cached_step(model, batch, 4, compute_loss=model.compute_loss, backward=backward, no_sync=nullcontext)
        gradients.append(gradients_of(model))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name] / 1024, gradient, rtol=1e-12, atol=1e-15)


def test_the_run_record_and_the_card_say_which_terms_were_trained(trained):
    folder = trained("siglip", "--inmodal_cyclic_weight", "0.5", "--cyclic_reference_batch_size", "16")
    record = json.loads((folder / "run.json").read_text())
    assert record["cyclic_terms"] == {
        "inmodal_cyclic_weight": 0.5,
        "crossmodal_cyclic_weight": 0.25,
        "cyclic_reference_batch_size": 16,
        "cyclic_max_gradient_share": 0.1,
    }
    card = (folder / "README.md").read_text()
    assert "| 0.5 | 0.25 | 16 | 0.1 |" in card and "SiglipModel" in card and "sigmoid" in card


def test_a_locked_tower_stays_as_it_is_and_its_new_projection_trains(trained, model_arguments):
    weights = load_file(trained(LIT) / "model.safetensors")
    for tower, moves in (("vision", False), ("text", True)):
        start = load_file(Path(model_arguments(LIT)[1]).parent / tower / "model.safetensors")
        moved = [name for name, tensor in start.items() if not weights[f"{tower}_model.{name}"].equal(tensor)]
        assert bool(moved) == moves
    # Other initial weights than after a training of no step.
    initial = torch.nn.init.normal_(torch.empty_like(weights["visual_projection.weight"]), std=0.02)
    assert weights["visual_projection.weight"].std() > 0.5 * initial.std()


def test_scale_and_bias_have_no_decay_and_towers_have_their_rates():
    for kind in KINDS:
        model, _ = make(kind)
        decayed = set(decay_parameter_names(model))
        assert not [name for name in decayed if name.endswith("bias") or name == "logit_scale"]
        assert any(name.endswith(".weight") for name in decayed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        set_tower_learning_rates(optimizer, model, 2.0, 3.0)
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        expected = {"v": 2.0, "t": 3.0, "l": 1.0}  # vision and text towers, and logit_scale
        assert all(rates[parameter] == expected[name[0]] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("kind, bounded", [("siglip", False), ("vision-text-dual-encoder", True)])
def test_only_the_scale_of_a_softmax_is_bounded(kind, bounded, pairs, tmp_path):
    model, processor = make(kind)
    with torch.no_grad():
        model.logit_scale.fill_(4.72)  # as a published SigLIP has it
    trainer_of(model, processor, tmp_path, train_dataset=pairs, max_steps=1).train()
    assert (model.logit_scale.exp().item() <= 100.01) == bounded


def trainer_of(model, processor, folder, max_steps=2, train_dataset=None, told=None, **options):
    fixed = {"max_steps": max_steps, "per_device_train_batch_size": 8, "save_strategy": "no", "logging_steps": 1}
    arguments = CyCLIPTrainingArguments(str(folder), use_cpu=True, **fixed, **(told or {}))
    return CyCLIPTrainer(model, arguments, train_dataset=train_dataset, processing_class=processor, **options)


def test_guessing_costs_a_sigmoid_what_the_best_constant_costs():
    # log_2 of nothing: the loss of 32 pairs at the best of all biases, by search.
    biases = torch.linspace(-8, 2, 100_001, dtype=torch.float64)
    best = (-F.logsigmoid(biases) - 31 * F.logsigmoid(-biases)).min().item()
    log = {"loss": best, "contrastive_loss": best, "logit_bias": -3.4, "learning_rate": 1.0}
    reading = Reading(log, log, batch_size=32, peak_learning_rate=1.0)
    assert reading.guessing == pytest.approx(best, rel=1e-8)
    assert f"stays at {best:.2f}, that of guessing" in nothing_learnt(reading)
    learnt = Reading({**log, "contrastive_loss": 0.9 * best}, log, 32, 1.0)
    assert nothing_learnt(learnt) is None


def test_siglip_reads_captions_padded_to_its_length(pairs, tmp_path):
    model, processor = make("siglip")
    trainer = trainer_of(model, processor, tmp_path, train_dataset=pairs)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (8, 64) and "attention_mask" not in batch
    with pytest.raises(ValueError, match=r'CyCLIPDataCollator\(processor, padding="max_length"\)'):
        trainer_of(model, processor, tmp_path, data_collator=CyCLIPDataCollator(processor))


def test_a_bidirectional_tower_keeps_its_mask(pairs, tmp_path):
    model, processor = make("vision-text-dual-encoder")
    seen = []
    model.text_model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    trainer_of(model, processor, tmp_path, train_dataset=pairs, max_steps=1).train()
    mask = seen[-1]["attention_mask"]
    assert mask.equal((seen[-1]["input_ids"] != processor.tokenizer.pad_token_id).long()) and not mask.all()


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_all_weights_of_a_checkpoint_are_loaded_whatever_their_names(kind, tmp_path):
    saved, _ = make(kind)
    saved.save_pretrained(tmp_path)
    model, processor = make(kind)
    trainer = trainer_of(model, processor, tmp_path)
    trainer.state.best_model_checkpoint = str(tmp_path)
    for load in (lambda: trainer._load_from_checkpoint(str(tmp_path)), trainer._load_best_model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load()
        assert all(model.state_dict()[name].equal(tensor) for name, tensor in saved.state_dict().items())


def swapped(arguments):
    return ["--vision_model", arguments[3], "--text_model", arguments[1]]


def without_pooler(arguments):
    BertModel.from_pretrained(arguments[3], add_pooling_layer=False).save_pretrained(arguments[3])
    return [*arguments[:4], "--freeze_text"]


def of_distilbert(arguments):
    config = DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2, vocab_size=len(bert_tokenizer()))
    DistilBertModel(config).save_pretrained(arguments[3])
    return arguments


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arguments: arguments[:2], "--vision_model is one of two towers: give the other as --text_model"),
        (lambda arguments: arguments[2:4], "--text_model is one of two towers: give the other as --vision_model"),
        (
            lambda arguments: [*arguments, "--model_size", "nano"],
            "exactly one of --model_name_or_path .* got --vision_mo",
        ),
        (swapped, "--vision_model .*text is a BertModel, which reads input_ids and not pixel_values"),
        (without_pooler, r"text lacks pooler\.dense\.bias and 1 others of its weights, which would stay random"),
        (of_distilbert, "cannot embed captions of 16 tokens: .*pooler_output"),
        (
            lambda arguments: [arguments[0], "/nowhere", *arguments[2:]],
            "--vision_model /nowhere: there is no such folder",
        ),
    ],
)
def test_wrong_towers_are_refused_in_one_line(train_file, tmp_path, capsys, change, message):
    model, processor = make("vision-text-dual-encoder")
    for name, tower, part in (
        ("vision", model.vision_model, processor.image_processor),
        ("text", model.text_model, processor.tokenizer),
    ):
        tower.save_pretrained(tmp_path / name)
        part.save_pretrained(tmp_path / name)
    arguments = change(["--vision_model", str(tmp_path / "vision"), "--text_model", str(tmp_path / "text")])
    files = ["--train_file", str(train_file), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        train.main([*arguments, *TEN_STEPS, *files])
    said = str(ended.value.code) if ended.value.code != 2 else capsys.readouterr().err.strip().splitlines()[-1]
    assert "\n" not in said and "error: " in said
    assert re.search(message, said), said


def pads_before(model, processor):
    processor.tokenizer.padding_side = "left"


def has_no_mask(model, processor):
    processor.tokenizer.model_input_names = ["input_ids"]


def ends_with_another_token(model, processor):
    model.text_model.eos_token_id = 7


def takes_larger_images(model, processor):
    processor.image_processor.size = {"height": 24, "width": 24}


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("metaclip_2", pads_before, "another embedding beside a longer one than alone"),
        ("vision-text-dual-encoder", has_no_mask, "another embedding beside a longer one than alone"),
        ("metaclip_2", ends_with_another_token, "gives all captions one embedding"),
        ("siglip", takes_larger_images, r"SiglipModel cannot embed images of shape \(3, 24, 24\)"),
    ],
)
def test_a_processor_of_another_model_is_refused(kind, change, message):
    model, processor = make(kind)
    change(model, processor)
    with pytest.raises(ValueError, match=message) as error:
        check_embeddings(model, processor, processor.tokenizer.model_max_length)
    assert "\n" not in str(error.value)


def test_terms_have_one_place_and_views_a_softmax(model, processor, tmp_path):
    with pytest.raises(ValueError, match=r"those of a CyCLIPModel stand in its `config`"):
        trainer_of(model, processor, tmp_path, cyclic_terms=CyclicTerms())
    with pytest.raises(ValueError, match="a SiglipModel has the sigmoid loss: train it without second views"):
        trainer_of(*make("siglip"), tmp_path, augment=lambda image, caption, draws: (image, caption))
    with pytest.raises(ValueError, match="`inmodal_cyclic_weight` must be a finite number"):
        CyclicTerms(inmodal_cyclic_weight=-1)


def test_what_has_no_scale_or_no_fixed_resolution_is_refused(tmp_path):
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    blocks = {"in_channels": [8], "out_channels": [8], "kernel_sizes": [3], "strides": [1], "expand_ratios": [1]}
    vision = {**blocks, "num_block_repeats": [1], "image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0}
    align = AlignModel(AlignConfig(text_config=tower, vision_config=vision))
    with pytest.raises(ValueError, match="AlignModel has no logit_scale: only models of transformers that embed"):
        trainer_of(align, None, tmp_path)
    vision = {**TOWER, "patch_size": 8, "num_patches": 4}
    naflex = Siglip2Model(Siglip2Config(text_config=make("siglip")[0].config.text_config, vision_config=vision))
    processor = Siglip2Processor(
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4), make("siglip")[1].tokenizer
    )
    with pytest.raises(ValueError, match=r"Siglip2Model cannot embed images of shape \(4, 192\)"):
        trainer_of(naflex, processor, tmp_path)


def test_adapters_of_a_siglip_open_as_what_they_merge_into(trained):
    lora = "--lora_rank", "2"
    merged = trained("siglip", *lora, "--merge_lora")
    images, captions = [coloured_image("red"), coloured_image("blue")], ["a red square", "a photo of a blue number 3"]
    embeds = []
    for folder in (trained("siglip", *lora), merged, trained("siglip")):
        model, processor = load_checkpoint(str(folder), "fp32", torch.device("cpu"))
        embeds.append(
            torch.cat([image_embeddings(model, processor, images), text_embeddings(model, processor, captions)])
        )
    torch.testing.assert_close(embeds[0], embeds[1], rtol=1e-5, atol=1e-6)
    assert (embeds[1] - embeds[2]).norm() > 1e-3
    assert type(AutoModel.from_pretrained(merged)) is SiglipModel


def test_checkpointing_spares_memory_where_a_model_has_it(trained, pairs, tmp_path):
    checkpointed = trained("siglip", "--gradient_checkpointing", "true")
    assert_is_the_same_training(checkpointed, trained("siglip"))
    with pytest.raises(ValueError, match="A VisionTextDualEncoderModel has no gradient checkpointing"):
        trainer_of(*make("vision-text-dual-encoder"), tmp_path, told={"gradient_checkpointing": True})


def test_second_views_train_other_encoders_too(pairs, tmp_path):
    model, processor = make("vision-text-dual-encoder")
    turned = lambda image, caption, draws: (image.transpose(Image.Transpose.ROTATE_90), f"{caption} number 7")  # noqa: E731
    trainer = trainer_of(model, processor, tmp_path, train_dataset=pairs, augment=turned)
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    log = next(log for log in reversed(trainer.state.log_history) if "loss" in log)
    assert log["inmodal_contrastive_loss"] > 0


def test_the_models_class_and_weights_stay_its_own(tmp_path):
    model, processor = make("siglip")
    names = list(model.state_dict())
    trainer_of(model, processor, tmp_path)
    assert type(model) is SiglipModel and list(model.state_dict()) == names
