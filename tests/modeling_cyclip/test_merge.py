"""The average of two checkpoints: weights, what comes from the end, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    CLIPModel,
    CLIPProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from modeling_cyclip import CyCLIPConfig, CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel
from modeling_cyclip.commands.merge import main
from modeling_cyclip.data.tokenizer import padding_of, train_tokenizer
from modeling_cyclip.merge import average_weights, merge_checkpoints
from tests.conftest import coloured_image
from tests.dual_encoders import KINDS, siglip, vit_and_bert


def make_model(config, seed: int, **values) -> CyCLIPModel:
    """A model of which every tensor depends on the seed. `values` are of the configuration."""
    values = {**config.to_dict(), **values}
    torch.manual_seed(seed)
    is_resnet = isinstance(config, CyCLIPResNetConfig)
    model = CyCLIPResNetModel(CyCLIPResNetConfig(**values)) if is_resnet else CyCLIPModel(CyCLIPConfig(**values))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.normal_(std=0.1).abs_() if tensor.is_floating_point() else tensor.fill_(10 + seed)
    return model.eval()


@pytest.fixture
def resnet_config(config) -> CyCLIPResNetConfig:
    vision = {"depths": [1, 1, 1, 1], "embedding_size": 4, "num_attention_heads": 2, "image_size": 32}
    return CyCLIPResNetConfig(text_config=config.text_config.to_dict(), vision_config=vision, projection_dim=12)


@pytest.fixture(params=["vit", "resnet"])
def either_config(request, config, resnet_config):
    return config if request.param == "vit" else resnet_config


@pytest.fixture
def save(processor, tmp_path):
    """Saves a checkpoint and returns its folder. A processor of `None` leaves it out."""

    def save(name: str, model: CyCLIPModel, processor: CLIPProcessor | None = processor) -> Path:
        model.save_pretrained(tmp_path / name)
        if processor is not None:
            processor.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name
        assert torch.equal(actual[name].signbit(), tensor.signbit()), name


# Weights


def test_weights_are_the_average(either_config, save, tmp_path):
    start, end = make_model(either_config, 0), make_model(either_config, 1)
    merge_checkpoints(save("start", start), save("end", end), tmp_path / "merged", 0.3)
    merged = CyCLIPModel.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(end)
    weights, start_weights, end_weights = merged.state_dict(), start.state_dict(), end.state_dict()
    assert weights.keys() == end_weights.keys()
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            expected = 0.7 * start_weights[name].double() + 0.3 * end_weights[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(tensor, end_weights[name])
    assert weights["logit_scale"] != end_weights["logit_scale"]
    if isinstance(either_config, CyCLIPResNetConfig):
        assert weights["vision_model.bn1.num_batches_tracked"] == 11


@pytest.mark.parametrize("end_weight", [0, 1])
def test_ends_of_the_line_are_the_checkpoints_themselves(end_weight, config, save, tmp_path):
    models = make_model(config, 0), make_model(config, 1)
    for model, other in (models, models[::-1]):
        with torch.no_grad():
            model.text_projection.weight[0] = -0.0
            other.text_projection.weight[0, 0] = 0.0
    merge_checkpoints(*map(save, ("start", "end"), models), tmp_path / "merged", end_weight)
    merged = CyCLIPModel.from_pretrained(tmp_path / "merged")
    assert_same_bits(merged.state_dict(), models[end_weight].state_dict())


def test_what_is_the_same_in_both_stays_to_the_bit(either_config):
    model = make_model(either_config, 0)
    assert_same_bits(average_weights(model, make_model(either_config, 0), 0.3), model.state_dict())


def test_plain_transformers_gets_the_logits_of_a_manual_average(config, save, processor, pairs, tmp_path):
    folders = save("start", make_model(config, 0)), save("end", make_model(config, 1))
    merge_checkpoints(*folders, tmp_path / "merged")
    start, expected, merged = map(CLIPModel.from_pretrained, (*folders, tmp_path / "merged"))
    with torch.no_grad():
        for parameter, other in zip(expected.parameters(), start.parameters(), strict=True):
            parameter.copy_((parameter + other) / 2)
    captions, pixel_values = ["red number 1", "a blue picture, shade 3"], torch.randn(3, 3, 16, 16)
    inputs = CLIPProcessor.from_pretrained(tmp_path / "merged").tokenizer(captions, padding=True, return_tensors="pt")
    assert torch.equal(inputs.input_ids, processor.tokenizer(captions, padding=True, return_tensors="pt").input_ids)
    with torch.no_grad():
        logits, expected_logits, start_logits = (
            model.eval()(**inputs, pixel_values=pixel_values).logits_per_image for model in (merged, expected, start)
        )
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, start_logits, rtol=1e-3)


# Other dual encoders


def save_other(folder: Path, kind: str, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model of transformers' own, of which every weight but those of the vision tower depends on the seed."""
    model, processor = KINDS[kind]()
    for name, tensor in model.state_dict().items():
        generator = torch.Generator().manual_seed(0 if name.startswith("vision_model") else seed)
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    if kind == "chinese_clip":
        model.state_dict()["text_model.embeddings.word_embeddings.weight"][0] = 0  # padding, as transformers opens it
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_another_dual_encoder_is_averaged_as_its_own_class(kind, tmp_path):
    start, end = (save_other(tmp_path / name, kind, seed) for seed, name in enumerate(("start", "end"), start=1))
    merge_checkpoints(start, end, tmp_path / "merged", 0.25)
    files, locked = [load_file(folder / "model.safetensors") for folder in (start, end, tmp_path / "merged")], []
    assert files[0].keys() == files[1].keys() == files[2].keys()
    for name, merged in files[2].items():
        if torch.equal(files[0][name], files[1][name]):
            locked.append(name)
            assert_same_bits({name: merged}, {name: files[0][name]})
        expected = 0.75 * files[0][name].double() + 0.25 * files[1][name].double()
        torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-8)
    assert locked and all(name.startswith("vision_model") for name in locked)

    # Some of these names are none of the modules': the logits show that plain transformers finds all.
    expected, other, merged = map(AutoModel.from_pretrained, (start, end, tmp_path / "merged"))
    assert type(merged) is type(KINDS[kind]()[0])
    with torch.no_grad():
        for parameter, end_parameter in zip(expected.parameters(), other.parameters(), strict=True):
            parameter.mul_(0.75).add_(end_parameter, alpha=0.25)
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = processor(
        text=["a red square", "a photo of a blue picture"], images=[coloured_image("red"), coloured_image("green", 3)],
        padding=padding_of(merged.config), return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        logits, expected_logits, start_logits = (
            model.eval()(**inputs).logits_per_image for model in (merged, expected, AutoModel.from_pretrained(start))
        )
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, start_logits, rtol=1e-3)


@pytest.mark.parametrize("kind", ["siglip", "vision-text-dual-encoder"])
def test_another_dual_encoder_has_the_precision_of_its_end(kind, tmp_path):
    start, end = save_other(tmp_path / "start", kind, 1), save_other(tmp_path / "end", kind, 2, torch.bfloat16)
    merge_checkpoints(start, end, tmp_path / "merged")
    weights, end_weights, merged = (
        load_file(folder / "model.safetensors") for folder in (start, end, tmp_path / "merged")
    )
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, weights[name].lerp(end_weights[name].float(), 0.5).bfloat16()), name


# What comes from the end


def test_all_but_the_weights_is_the_end_s(config, processor, save, tmp_path):
    end_processor = CLIPProcessor(type(processor.image_processor)(image_mean=[0.1, 0.2, 0.3]), processor.tokenizer)
    start = save("start", make_model(config, 0, inmodal_cyclic_weight=0.5))
    end = save("end", make_model(config, 1, inmodal_cyclic_weight=0.125), end_processor)
    merge_checkpoints(start, end, tmp_path / "merged")
    assert CyCLIPConfig.from_pretrained(tmp_path / "merged").inmodal_cyclic_weight == 0.125
    assert list(CLIPProcessor.from_pretrained(tmp_path / "merged").image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert (tmp_path / "merged/preprocessor_config.json").is_file()  # for transformers 4


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_precision_is_the_end_s_and_averages_are_taken_in_float32(dtypes, config, save, tmp_path):
    start, end = (make_model(config, seed).to(dtype) for seed, dtype in enumerate(dtypes))
    merge_checkpoints(save("start", start), save("end", end), tmp_path / "merged", 0.25)
    merged = CyCLIPModel.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtypes[1]
    averages = average_weights(start.float(), end.float(), 0.25)
    assert_same_bits(merged.state_dict(), {name: tensor.to(dtypes[1]) for name, tensor in averages.items()})


# What is refused


@pytest.mark.parametrize("end_weight", [-0.1, 1.5, float("nan")])
def test_a_weight_outside_0_to_1(end_weight, config, tmp_path):
    with pytest.raises(ValueError, match=f"from 0 to 1, got {end_weight}"):
        merge_checkpoints("absent", "absent", tmp_path / "merged", end_weight)
    with pytest.raises(ValueError, match="from 0 to 1"):
        average_weights(CyCLIPModel(config), CyCLIPModel(config), end_weight)


def test_different_kinds(config, resnet_config):
    with pytest.raises(ValueError, match="the start is a CyCLIPModel, the end a CyCLIPResNetModel"):
        average_weights(CyCLIPModel(config), CyCLIPResNetModel(resnet_config))
    with pytest.raises(ValueError, match="the start is a SiglipModel, the end a CyCLIPModel"):
        average_weights(siglip()[0], CyCLIPModel(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 48}, r"vision_model\S+\.mlp\.fc1\.weight is \(32, 16\) in the start, \(48, 16\) in the end"),
        ({"num_hidden_layers": 3}, r"vision_model\.encoder\.layers\.2\.\S+ is absent in the start, \(16,.*\) in the end"),
        ({"num_hidden_layers": 1}, r"vision_model\.encoder\.layers\.1\.\S+ is \(16,.*\) in the start, absent in the end"),
        ({"num_attention_heads": 4}, r"vision_config\.num_attention_heads is 2 in the start, 4 in the end"),
        ({"hidden_act": "gelu"}, r"vision_config\.hidden_act is quick_gelu in the start, gelu in the end"),
    ],
)  # fmt: skip
def test_different_weights_or_settings(change, message, config):
    other = CyCLIPConfig(**{**config.to_dict(), "vision_config": {**config.vision_config.to_dict(), **change}})
    with pytest.raises(ValueError, match=message):
        average_weights(CyCLIPModel(config), CyCLIPModel(other))


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("text_config", {"hidden_act": "relu"}, r"text_config\.hidden_act is gelu in the start, relu in the end"),
        ("vision_config", {"num_attention_heads": 4}, r"vision_config\.num_attention_heads is 2 in the start, 4 in the end"),
        ("vision_config", {"pooler_act": "relu"}, r"vision_config\.pooler_act is tanh in the start, relu in the end"),
        # Its weights have the names and shapes of a BERT's.
        ("text_config", {"model_type": "roberta"}, r"text_config\.model_type is bert in the start, roberta in the end"),
    ],
)  # fmt: skip
def test_different_settings_of_two_towers(tower, change, message):
    start, _ = vit_and_bert()
    values = start.config.to_dict()
    other = VisionTextDualEncoderModel(VisionTextDualEncoderConfig(**{**values, tower: {**values[tower], **change}}))
    with pytest.raises(ValueError, match=message):
        average_weights(start, other)


def test_different_frequencies_of_rotary_positions():
    start, end = siglip()[0], siglip()[0]
    for model, theta in ((start, 100.0), (end, 10_000.0)):
        model.config.vision_config.rope_theta = theta  # as a DINOv3 has
    with pytest.raises(ValueError, match=r"vision_config\.rope_theta is 100.0 in the start, 10000.0 in the end"):
        average_weights(start, end)


def test_different_vocabularies_of_another_dual_encoder(tmp_path):
    start, end = save_other(tmp_path / "start", "siglip", 1), save_other(tmp_path / "end", "siglip", 2)
    vocabulary = (end / "tokenizer.json").read_text()
    (end / "tokenizer.json").write_text(vocabulary.replace('"photo"', '"photograph"'))
    with pytest.raises(ValueError, match=r"start and .*end have different vocabularies"):
        merge_checkpoints(start, end, tmp_path / "merged")


def test_an_adapter_of_another_dual_encoder(tmp_path):
    peft = pytest.importorskip("peft")
    start = save_other(tmp_path / "start", "siglip", 1)
    adapted = peft.get_peft_model(AutoModel.from_pretrained(start), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "end")
    AutoProcessor.from_pretrained(start).save_pretrained(tmp_path / "end")
    with pytest.raises(ValueError, match="end is an adapter: merge it into its checkpoint first"):
        merge_checkpoints(start, tmp_path / "end", tmp_path / "merged")


def test_different_vocabularies(model, processor, save, tmp_path):
    # As many tokens, but others.
    captions = ["wholly different words of another training"] * 9
    tokenizer = train_tokenizer(captions, len(processor.tokenizer), max_length=16)
    end = save("end", model, CLIPProcessor(processor.image_processor, tokenizer))
    with pytest.raises(ValueError, match=r"start and .*end have different vocabularies"):
        merge_checkpoints(save("start", model), end, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_no_tokenizer(model, processor, save, tmp_path):
    start, end = save("start", model), save("end", model, None)
    processor.image_processor.save_pretrained(end)
    with pytest.raises(ValueError, match="end has no tokenizer"):
        merge_checkpoints(start, end, tmp_path / "merged")


def test_an_adapter(model, processor, save, tmp_path):
    peft = pytest.importorskip("peft")
    start = save("start", model)
    adapted = peft.get_peft_model(CLIPModel.from_pretrained(start), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "end")
    processor.save_pretrained(tmp_path / "end")
    with pytest.raises(ValueError, match="end is an adapter: merge it into its checkpoint first"):
        merge_checkpoints(start, tmp_path / "end", tmp_path / "merged")


def test_a_folder_that_is_not_empty(model, save):
    start = save("start", model)
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    with pytest.raises(FileExistsError, match="start exists and is not an empty folder"):
        merge_checkpoints(start, start, start)
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before


# Command


def test_command(config, save, tmp_path, capsys):
    model = make_model(config, 0)
    folders = save("start", model), save("end", make_model(config, 1))
    (tmp_path / "merged").mkdir()
    main([*map(str, folders), str(tmp_path / "merged"), "--end_weight", "0.25"])
    said = f"CyCLIPModel, {model.num_parameters():,} parameters, 0.75 * {folders[0]} + 0.25 * {folders[1]}"
    assert said in capsys.readouterr().out
    averages = average_weights(*map(CyCLIPModel.from_pretrained, folders), 0.25)
    assert_same_bits(CyCLIPModel.from_pretrained(tmp_path / "merged").state_dict(), averages)


def cut_off(folder: Path):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (
            None,
            ["start", "absent", "merged"],
            "absent, which is no folder here, cannot be opened as a checkpoint",
        ),
        (None, ["nobody/nothing", "start", "merged"], "nobody/nothing, which is no folder here, cannot be opened"),
        (cut_off, ["start", "start", "merged"], "start cannot be opened as a checkpoint"),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["start", "start", "merged"], "start has no tokenizer"),
        (lambda folder: (folder / "processor_config.json").unlink(), ["start", "start", "merged"], "start cannot be"),
        (
            lambda folder: save_other(folder, "siglip", 1).joinpath("processor_config.json").unlink(),
            ["start", "start", "merged"],
            "start lacks a tokenizer or an image processor",
        ),
        (
            lambda folder: BertConfig().save_pretrained(folder),
            ["start", "start", "merged"],
            "start is a checkpoint of type bert, which has no get_image_features",
        ),
        (None, ["start", "start", "start"], "start exists and is not an empty folder"),
        (None, ["start", "start", "merged", "--end_weight", "2"], r"from 0 to 1, got 2\.0"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(prepare, arguments, message, model, save, tmp_path, monkeypatch):
    start = save("start", model)
    if prepare is not None:
        prepare(start)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    # Python prints such a code and ends with status 1.
    assert re.search(f"^error: .*{message}", ended.value.code)
    assert "\n" not in ended.value.code and len(ended.value.code) < 500
    assert not Path("merged").exists()
