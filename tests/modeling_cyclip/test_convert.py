"""cyclip-convert: official, OpenAI and OpenCLIP weights to a checkpoint folder and back."""

import gzip
import json
import os
import pickle
import re
import tomllib
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, CLIPModel, pipeline

from modeling_cyclip import CyCLIPConfig, CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel
from modeling_cyclip.commands.convert import main
from modeling_cyclip.convert import export_checkpoint, import_checkpoint, load_tokenizer, read_state_dict
from modeling_cyclip.convert_state_dict import infer_config, model_from_state_dict, model_to_state_dict


REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY.parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared/golden beside the checkout")

# Two letters of "cat" merge, then all three, the way the lines of CLIP's list are written.
MERGES = ["c a", "ca t</w>", "d o", "do g</w>"]
VOCAB_SIZE = 2 * 256 + len(MERGES) + 2


@pytest.fixture(params=["resnet", "vit"])
def model(request) -> CyCLIPModel:
    torch.manual_seed(0)
    text = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 1, "max_position_embeddings": 12, "eos_token_id": VOCAB_SIZE - 1}
    if request.param == "resnet":
        vision = {"depths": [1, 2, 1, 1], "embedding_size": 4, "num_attention_heads": 2, "image_size": 64}
        model = CyCLIPResNetModel(CyCLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        vision = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2}
        vision |= {"image_size": 48, "patch_size": 16}
        model = CyCLIPModel(CyCLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.random_(9) if tensor.dtype == torch.int64 else tensor.normal_(std=0.1).abs_()
    return model.eval()


@pytest.fixture
def merges(tmp_path) -> Path:
    path = tmp_path / "bpe.txt.gz"
    # The list of CLIP's repositories goes on after what the vocabulary takes of it.
    path.write_bytes(gzip.compress("\n".join(['"bpe" - version: 0.2', *MERGES, "a b", "c d</w>", ""]).encode()))
    return path


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].dtype == expected[key].dtype and torch.equal(actual[key], expected[key]), key


# The official code's checkpoints


@needs_golden
@pytest.mark.parametrize(("kind", "cls"), [("rn", CyCLIPResNetModel), ("vit", CyCLIPModel)])
def test_official_checkpoint_there_and_back(kind, cls, tmp_path):
    source = GOLDEN / f"official_{kind}_tiny.pt"
    import_checkpoint(source, tmp_path / "folder")
    model = CyCLIPModel.from_pretrained(tmp_path / "folder")
    assert type(model) is cls

    expected = load_file(GOLDEN / f"official_{kind}_tiny_expected.safetensors")
    with torch.no_grad():
        outputs = model(input_ids=expected["input_ids"], pixel_values=expected["pixel_values"])
    torch.testing.assert_close(outputs.image_embeds, expected["image_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.text_embeds, expected["text_embeds"], atol=1e-5, rtol=0)

    export_checkpoint(tmp_path / "folder", tmp_path / "back.pt")
    original = torch.load(source, weights_only=True)["state_dict"]
    original = {key.removeprefix("module."): value for key, value in original.items()}
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True), original)


# Weights


def test_there_and_back(model, tmp_path):
    weights = model_to_state_dict(model)
    assert not any(key.startswith(("vision_model", "text_model")) for key in weights)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "a.pt"
    )
    save_file(weights, tmp_path / "b.safetensors")
    for source in ("a.pt", "b.safetensors"):
        folder = tmp_path / f"from_{source}"
        import_checkpoint(tmp_path / source, folder, vocabulary="none")
        converted = CyCLIPModel.from_pretrained(folder)
        assert type(converted) is type(model)
        assert_same(converted.state_dict(), model.state_dict())
        assert converted.config.text_config.eos_token_id == VOCAB_SIZE - 1
        for target in ("back.pt", "back.safetensors"):
            export_checkpoint(folder, folder / target)
            assert_same(read_state_dict(folder / target), weights)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_wrappers_and_training_checkpoints_are_read_through(prefix, entry, tmp_path):
    weights = {"logit_scale": torch.ones(()), "ln_final.bias": torch.ones(2)}
    content = {prefix + key: value for key, value in weights.items()}
    torch.save({"step": 3, entry: content, "optimizer": {}} if entry else content, tmp_path / "a.pt")
    assert_same(read_state_dict(tmp_path / "a.pt"), weights)


@pytest.mark.parametrize("target", ["back.pt", "back.safetensors"])
def test_exported_weights_have_the_permissions_of_other_files(target, model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    before = os.umask(0o027)
    try:
        export_checkpoint(tmp_path / "folder", tmp_path / target)
    finally:
        os.umask(before)
    assert (tmp_path / target).stat().st_mode & 0o777 == 0o640


def test_openclip_models_with_a_text_tower_of_their_own(model, tmp_path):
    # OpenCLIP's CustomTextCLIP, as its convert_to_custom_text_state_dict names them.
    tower = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    weights = {
        f"text.{key}" if key.startswith(tower) else key: value for key, value in model_to_state_dict(model).items()
    }
    assert {"text.text_projection", "text.transformer.resblocks.1.ln_2.bias", "logit_scale"} < weights.keys()
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    converted = import_checkpoint(tmp_path / "open_clip_model.safetensors", tmp_path / "folder", vocabulary="none")
    assert_same(converted.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("tower", "setting", "message"),
    [
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is 'last'"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask is True"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type is 'avg'"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}, "vision_cfg.norm_kwargs is "),
    ],
)
def test_openclip_settings_that_weights_do_not_tell_are_refused(tower, setting, message, model, tmp_path):
    save_file(model_to_state_dict(model), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {tower: setting}}))
    with pytest.raises(ValueError, match=message):
        import_checkpoint(tmp_path / "open_clip_model.safetensors", tmp_path / "folder", vocabulary="none")
    assert not (tmp_path / "folder").exists()


def test_vit_folder_is_a_clip_checkpoint(model, tmp_path):
    if isinstance(model, CyCLIPResNetModel):
        pytest.skip("a ResNet tower is no CLIPModel")
    save_file(model_to_state_dict(model), tmp_path / "weights.safetensors")
    import_checkpoint(tmp_path / "weights.safetensors", tmp_path / "folder", vocabulary="none")
    clip, info = CLIPModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(clip.state_dict(), model.state_dict())


def test_openai_metadata_and_mixed_precision(model):
    weights = model_to_state_dict(model)
    halved = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    halved["input_resolution"] = torch.tensor(64)
    halved |= {"context_length": torch.tensor(12), "vocab_size": torch.tensor(VOCAB_SIZE)}
    converted = model_from_state_dict(halved)
    assert converted.dtype == torch.float32
    back = model_to_state_dict(converted)
    assert all(torch.equal(back[key].to(halved[key].dtype), halved[key]) for key in back)

    all_half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    assert_same(model_to_state_dict(model_from_state_dict(all_half)), all_half)


def test_unknown_missing_and_misshapen_keys_are_listed(model):
    weights = model_to_state_dict(model)
    del weights["ln_final.bias"], weights["transformer.resblocks.0.attn.in_proj_bias"]
    weights["visual.ls_1.gamma"] = torch.ones(3)
    weights["logit_bias"] = torch.ones(())
    weights["logit_scale"] = torch.ones(1)
    with pytest.raises(ValueError) as error:
        model_from_state_dict(weights)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "unknown keys: logit_bias, visual.ls_1.gamma",
        "missing keys: ln_final.bias, transformer.resblocks.0.attn.in_proj_bias",
        "wrong shapes: logit_scale (1,), not ()",
    ]


def test_weights_of_something_else():
    with pytest.raises(ValueError, match=r"no weights of CLIP: `token_embedding\.weight` is missing among fc\.weight"):
        infer_config({"fc.weight": torch.ones(2, 2)})


def test_heads_that_shapes_do_not_tell(model):
    weights = model_to_state_dict(model)
    config = infer_config(weights, vision_heads=4, text_heads=8, hidden_act="gelu")
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (4, 8)
    assert config.text_config.hidden_act == "gelu"
    weights["token_embedding.weight"] = torch.ones(VOCAB_SIZE, 96)
    with pytest.raises(ValueError, match="number of text heads: its width 96"):
        infer_config(weights)


def test_openclip_configuration_beside_the_weights(model, tmp_path):
    save_file(model_to_state_dict(model), tmp_path / "open_clip_model.safetensors")
    resnet = isinstance(model, CyCLIPResNetModel)
    vision = {"width": 4 if resnet else 128, "layers": [1, 2, 1, 1] if resnet else 3, "head_width": 32}
    content = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"heads": 2}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    source = tmp_path / "open_clip_model.safetensors"
    config = import_checkpoint(source, tmp_path / "a", vocabulary="none").config
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (4, 2)
    assert config.text_config.hidden_act == "gelu"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "a")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5] and list(processor.image_std) == [0.25, 0.25, 0.25]
    # What is asked for comes first.
    config = import_checkpoint(source, tmp_path / "b", vocabulary="none", hidden_act="quick_gelu").config
    assert config.text_config.hidden_act == "quick_gelu"


# Files


class Poison:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickle_with_anything_else_is_refused(model, tmp_path):
    poison = Poison()
    poison.path = tmp_path / "was_run"
    torch.save({"state_dict": model_to_state_dict(model), "name": poison}, tmp_path / "poisoned.pt")
    with pytest.raises(ValueError, match=r"poisoned\.pt is refused.*system.*weights_only"):
        import_checkpoint(tmp_path / "poisoned.pt", tmp_path / "folder")
    assert not poison.path.exists() and not (tmp_path / "folder").exists()


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_program_is_refused_with_a_way_out(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(program, tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"refused(.|\n)*torch\.jit\.load"):
        read_state_dict(tmp_path / "program.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file_is_refused(suffix, model, tmp_path):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model_to_state_dict(model), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="weights"):
        import_checkpoint(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"weight": 3}}, torch.ones(2)])
def test_file_without_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="no state dict"):
        read_state_dict(tmp_path / "weights.pt")


def test_nothing_is_overwritten(model, tmp_path):
    save_file(model_to_state_dict(model), tmp_path / "weights.safetensors")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        import_checkpoint(tmp_path / "weights.safetensors", tmp_path, vocabulary="none")
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(FileExistsError, match=r"weights\.safetensors exists"):
        export_checkpoint(tmp_path / "folder", tmp_path / "weights.safetensors")


# Vocabulary


def test_vocabulary_from_a_list_of_merges(merges, tmp_path):
    tokenizer = load_tokenizer(merges, VOCAB_SIZE, 12)
    # CLIP's order: 256 bytes from "!" on, the same ending a word, the merges, then start and end of the text.
    a, d, s = (ord(letter) - ord("!") for letter in "ads")
    expected = [VOCAB_SIZE - 2, a + 256, 512 + 1, 512 + 2, s + 256, VOCAB_SIZE - 1]
    assert tokenizer("A cat  DOs").input_ids == expected
    assert tokenizer("d").input_ids[1] == d + 256
    assert tokenizer.model_max_length == 12

    plain = tmp_path / "bpe.txt"
    plain.write_bytes(gzip.decompress(merges.read_bytes()))
    assert load_tokenizer(plain, VOCAB_SIZE, 12).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer", VOCAB_SIZE, 12)("A cat  DOs").input_ids == expected


def test_vocabulary_of_another_size(merges, tmp_path):
    load_tokenizer(merges, VOCAB_SIZE, 12).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=f"has {VOCAB_SIZE} entries.*weights have 600 tokens"):
        load_tokenizer(tmp_path / "tokenizer", 600, 12)


def test_vocabulary_left_out_with_a_message(model, tmp_path, caplog):
    save_file(model_to_state_dict(model), tmp_path / "weights.safetensors")
    import_checkpoint(tmp_path / "weights.safetensors", tmp_path / "folder")
    assert f"gets no tokenizer, since these weights have {VOCAB_SIZE} tokens" in caplog.text
    assert not list((tmp_path / "folder").glob("tokenizer*"))


def test_hub_out_of_reach_leaves_the_vocabulary_out(model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("modeling_cyclip.convert.CLIP_VOCABULARY_SIZE", VOCAB_SIZE)
    monkeypatch.setattr("modeling_cyclip.convert.CLIP_VOCABULARY", "nobody/has-this-vocabulary")
    save_file(model_to_state_dict(model), tmp_path / "weights.safetensors")
    import_checkpoint(tmp_path / "weights.safetensors", tmp_path / "folder")
    assert "cannot be had from the Hub" in caplog.text
    with pytest.raises(OSError):  # but one that was asked for must be there
        import_checkpoint(
            tmp_path / "weights.safetensors", tmp_path / "other", vocabulary="nobody/has-this-vocabulary"
        )
    assert not (tmp_path / "other").exists()


def test_converted_folder_opens_in_the_pipeline(model, merges, tmp_path):
    save_file(model_to_state_dict(model), tmp_path / "weights.safetensors")
    import_checkpoint(tmp_path / "weights.safetensors", tmp_path / "folder", vocabulary=merges)
    classifier = pipeline("zero-shot-image-classification", model=str(tmp_path / "folder"))
    answer = classifier(Image.new("RGB", (80, 60), "red"), candidate_labels=["cat", "dog"], hypothesis_template="a {}")
    assert {item["label"] for item in answer} == {"cat", "dog"}
    # The file that transformers 4 looks for.
    size = model.config.vision_config.image_size
    assert json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())["crop_size"]["height"] == size


# Command


def test_command_there_and_back(model, merges, tmp_path, capsys):
    weights = model_to_state_dict(model)
    torch.save(weights, tmp_path / "weights.pt")
    main([str(tmp_path / "weights.pt"), str(tmp_path / "folder"), "--vocabulary", str(merges)])
    assert f"{type(model).__name__}, {model.num_parameters():,} parameters" in capsys.readouterr().out
    main([str(tmp_path / "folder"), str(tmp_path / "back.pt")])
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True), weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pt", "folder"], r"no file .*absent\.pt"),
        (["absent", "back.pt", "--text_heads", "2"], "how to read a file"),
        (["absent", "back.pt"], "absent"),
    ],
)
def test_command_says_what_is_wrong(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(arguments)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def write_checkpoint_cut_off(folder):
    CyCLIPConfig().save_pretrained(folder)
    save_file({"logit_scale": torch.ones(1000)}, folder / "model.safetensors")
    cut(folder / "model.safetensors", 500)


LEGACY = {"_use_new_zipfile_serialization": False}
NO_SOURCES = {
    "keys.pt": (
        lambda path: torch.save({1: torch.ones(2)}, path),
        "no state dict: its keys are not names, but such as 1",
    ),
    "epoch.pt": (lambda path: torch.save({"state_dict": {1: torch.ones(2)}}, path), "its keys are not names"),
    "half.pt": (lambda path: torch.save({"a": torch.ones(999)}, path) or cut(path, 2000), "cut off"),
    "start.pt": (lambda path: torch.save({"a": torch.ones(999)}, path) or cut(path, 60), "cut off"),
    "old_half.pt": (lambda path: torch.save({"a": torch.ones(999)}, path, **LEGACY) or cut(path, 2000), "cut off"),
    "old_start.pt": (lambda path: torch.save({"a": torch.ones(999)}, path, **LEGACY) or cut(path, 30), "cut off"),
    "half.safetensors": (lambda path: save_file({"a": torch.ones(999)}, path) or cut(path, 2000), "safetensors"),
    "empty.pt": (Path.touch, "is empty"),
    "empty.safetensors": (Path.touch, "is empty"),
    "empty": (Path.touch, "is empty"),
    "notes.txt": (lambda path: path.write_text("hello world"), "no file of weights"),
    "page.pt": (lambda path: path.write_text("<!DOCTYPE html>"), "no file of weights"),
    "list.json": (lambda path: path.write_text('{"weights": 1}'), "no file of weights"),
    "picture.bin": (lambda path: Image.new("RGB", (9, 9)).save(path, format="png"), "no file of weights"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps({"a": [1]})), "no file of weights"),
    "archive.pt": (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "no file of weights"),
    "arguments.pt": (
        lambda path: torch.save({"args": Namespace(lr=1)}, path),
        "more than weights, argparse.Namespace",
    ),
    "program.pt": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), "TorchScript"),
    "other.pt": (lambda path: torch.save({"fc.weight": torch.ones(2, 2)}, path), "no weights of CLIP"),
    "folder": (Path.mkdir, "no checkpoint"),
    "folder.pt": (Path.mkdir, "no checkpoint"),
    "cut_off": (write_checkpoint_cut_off, "no checkpoint.*incomplete"),
    "absent": (lambda path: None, "is neither a file nor a folder, and no checkpoint on the Hub"),
    "absent.pt": (lambda path: None, "There is no file"),
}


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning:torch.jit", "ignore::FutureWarning:torch.jit")
@pytest.mark.parametrize("name", NO_SOURCES)
def test_command_names_a_source_that_is_none_in_one_line(name, tmp_path, monkeypatch):
    write, message = NO_SOURCES[name]
    monkeypatch.chdir(tmp_path)
    write(Path(name))
    with pytest.raises(SystemExit) as ended:
        main([name, "target"])
    # Python prints such a code and ends with status 1.
    assert ended.value.code.startswith("error: ") and name in ended.value.code
    assert re.search(message, ended.value.code) and "\n" not in ended.value.code and len(ended.value.code) < 500
    assert not Path("target").exists()


def test_command_is_a_console_script():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["cyclip-convert"] == "modeling_cyclip.commands.convert:main"
