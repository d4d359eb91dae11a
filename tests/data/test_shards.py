"""WebDataset shards: what is read, what is left out and named, and the same batches however they are divided."""

import gzip
import io
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.data import shards
from modeling_cyclip.data.augment import SecondView
from modeling_cyclip.data.captions import DataArguments, iterate_captions, load_captioned_datasets
from modeling_cyclip.data.images import load_image
from modeling_cyclip.data.sampler import EpochSampler
from modeling_cyclip.data.samples import CaptionedSamples
from modeling_cyclip.data.shards import load_shards
from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"


def picture(number=0, extension="png"):
    buffer = io.BytesIO()
    image = coloured_image(list(COLOURS)[number % 4], number // 4)
    image.save(buffer, {"jpg": "jpeg"}.get(extension, extension))
    return buffer.getvalue()


def write_shard(path, members):
    """A tar of the members: a dictionary, or pairs of name and content where names come again."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers):
    members = {}
    for number in numbers:
        members |= {f"{number:04d}.png": picture(number), f"{number:04d}.txt": f"picture number {number}\n"}
    return members


def captions(dataset):
    return [caption for captions in dataset["caption"] for caption in captions]


@pytest.fixture
def three_shards(tmp_path):
    """Seven samples each, the image of one broken."""
    for shard in range(3):
        members = samples(range(7 * shard, 7 * shard + 7))
        if shard == 1:
            members["0009.png"] = b"no image"
        write_shard(tmp_path / f"pairs-{shard}.tar", members)
    return str(tmp_path / "pairs-*.tar")


def test_every_kind_of_sample_is_read(tmp_path):
    members = {
        "a/1.jpg": picture(0, "jpg"),
        "a/1.json": json.dumps({"caption": ["one", "eins"], "url": "x"}),
        "a/1.cls": "7",
        "b/1.JPEG": picture(1, "jpeg"),
        "b/1.txt": "the text comes first",
        "b/1.json": json.dumps({"caption": "not this one"}),
        "._2.jpg": "a resource fork",
        "2.txt": "before its image, with more dots",
        "2.seg.png": "a mask",
        "2.webp": picture(2, "webp"),
        "3.png": picture(3),
        "3.json": json.dumps({"caption": " a json text "}),
    }
    dataset = load_shards([str(write_shard(tmp_path / "a.tar", members))])
    assert dataset["caption"][:] == [
        ["one", "eins"],
        ["the text comes first"],
        ["before its image, with more dots"],
        ["a json text"],
    ]
    assert [row["member"] for row in dataset["image"]] == ["a/1.jpg", "b/1.JPEG", "2.webp", "3.png"]
    for row, colour in zip(dataset["image"], COLOURS.values(), strict=True):
        pixel = load_image(row).getpixel((8, 8))
        assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12


KEYS = {
    # the members' names, and the image and the captions of each sample
    "dots in keys": (
        ["photo.2019.jpg", "photo.2019.txt", "v1.5.jpg", "v1.5.txt", "v1.6.jpg", "v1.6.txt"],
        [("photo.2019.jpg", "photo.2019.txt"), ("v1.5.jpg", "v1.5.txt"), ("v1.6.jpg", "v1.6.txt")],
    ),
    "all images first": (["a.1.jpg", "a.2.jpg", "a.1.txt", "a.2.txt"], [("a.1.jpg", "a.1.txt"), ("a.2.jpg", "a.2.txt")]),
    "a key that another one begins with": (
        ["a.jpg", "a.txt", "a.1.jpg", "a.1.txt"], [("a.jpg", "a.txt"), ("a.1.jpg", "a.1.txt")]
    ),
    "further parts": (["a.mask.png", "a.jpg", "a.txt", "b.c.mask.png", "b.c.jpg", "b.c.txt"], [("a.jpg", "a.txt"), ("b.c.jpg", "b.c.txt")]),
    "a further part within each sample": (
        ["a.txt", "a.mask.png", "a.jpg", "b.txt", "b.mask.png", "b.jpg"], [("a.jpg", "a.txt"), ("b.jpg", "b.txt")]
    ),
    "captions behind the image's name": (["a.jpg", "a.jpg.txt", "b.PNG", "b.PNG.txt"], [("a.jpg", "a.jpg.txt"), ("b.PNG", "b.PNG.txt")]),
    "other names of captions": (["a.jpg", "a.caption", "b.jpg", "b.text"], [("a.jpg", "a.caption"), ("b.jpg", "b.text")]),
    "dots in folders": (["x.y/a.jpg", "x.y/a.txt"], [("x.y/a.jpg", "x.y/a.txt")]),
}  # fmt: skip


@pytest.mark.parametrize("names, expected", KEYS.values(), ids=KEYS)
def test_keys_and_names_of_members(tmp_path, caplog, names, expected):
    # The caption is the name of its member.
    members = [(name, name if name.endswith(("txt", "caption", "text")) else picture(0)) for name in names]
    dataset = load_shards([str(write_shard(tmp_path / "a.tar", members))])
    pairs = [(row["image"]["member"], *row["caption"]) for row in dataset]
    assert pairs == expected and not caplog.records


def test_keys_with_dots_that_are_not_whole_are_counted(tmp_path, caplog):
    members = {"a.1.jpg": picture(0), "a.1.txt": "a", "a.2.jpg": picture(0), "a.3.txt": "b"}
    assert len(load_shards([str(write_shard(tmp_path / "a.tar", members))])) == 1
    assert "1 of 3 samples have no usable caption" in caplog.text and "a.tar/a.2" in caplog.text
    assert "1 of 3 samples have no usable image" in caplog.text and "a.tar/a.3" in caplog.text


@pytest.mark.parametrize("field", ["caption", "captions", "text", "txt"])
def test_fields_of_json_members(tmp_path, field):
    members = {"a.jpg": picture(0), "a.json": json.dumps({"width": 7, field: ["one", "two"]})}
    assert load_shards([str(write_shard(tmp_path / "a.tar", members))])["caption"][:] == [["one", "two"]]


def test_the_index_is_made_once_and_anew_for_another_shard(three_shards, tmp_path, monkeypatch, caplog):
    expected = captions(load_shards([three_shards]))
    assert len(expected) == 21
    walked = []
    walk = shards._walk
    monkeypatch.setattr(shards, "_walk", lambda shard, size: walked.append(Path(shard).name) or walk(shard, size))
    assert captions(load_shards([three_shards])) == expected and not walked
    (tmp_path / "pairs-1.tar.index.arrow").write_bytes(b"cut off")
    write_shard(tmp_path / "pairs-2.tar", samples(range(50, 52)))
    assert captions(load_shards([three_shards]))[-2:] == ["picture number 50", "picture number 51"]
    assert walked == ["pairs-1.tar", "pairs-2.tar"]
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".tar", ".arrow")]


def test_the_index_goes_to_the_cache_where_the_folder_is_read_only(three_shards, tmp_path, cache, monkeypatch):
    write = shards.write_stream

    def refuse(schema, batches, path):
        if path.parent == tmp_path:
            raise PermissionError("read-only")
        return write(schema, batches, path)

    monkeypatch.setattr(shards, "write_stream", refuse)
    expected = captions(load_shards([three_shards]))
    assert len(list(cache.rglob("*.arrow"))) == 3 and not list(tmp_path.glob("*.arrow"))
    monkeypatch.setattr(shards, "_walk", None)
    assert captions(load_shards([three_shards])) == expected


def test_many_shards_are_indexed_in_several_processes(three_shards, monkeypatch):
    monkeypatch.setattr(shards, "SHARDS_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(shards.os, "cpu_count", lambda: 2)
    assert captions(load_shards([three_shards])) == [f"picture number {number}" for number in range(21)]


def test_captions_that_cannot_be_used_are_counted_and_left_out(tmp_path, caplog):
    bad = {
        "missing": {},
        "empty": {"txt": " \n"},
        "number": {"json": json.dumps({"caption": 7})},
        "null": {"json": json.dumps({"caption": None})},
        "list": {"json": json.dumps({"caption": ["", 3]})},
        "array": {"json": "[]"},
        "broken": {"json": "{"},
        "latin": {"txt": "caf\u00e9".encode("latin-1")},
    }
    members = samples([0])
    for key, texts in bad.items():
        members |= {f"{key}.png": picture(), **{f"{key}.{kind}": content for kind, content in texts.items()}}
    members |= {"some.png": picture(), "some.json": json.dumps({"caption": ["", None, "some text"]})}
    members |= {"alone.txt": "no image"}
    write_shard(tmp_path / "a.tar", members)
    for _ in range(2):  # said in every run, whether the index was there or not
        caplog.clear()
        dataset = load_shards([str(tmp_path / "a.tar")])
        assert captions(dataset) == ["picture number 0", "some text"]
        no_image, no_caption = (record.message for record in caplog.records if record.levelno == logging.WARNING)
        assert no_caption.startswith("8 of 11 samples have no usable caption") and "a.tar/missing" in no_caption
        assert no_image.startswith("1 of 11 samples have no usable image") and "a.tar/alone" in no_image


JPG, JPG_AGAIN, PNG, TEXT, TEXT_AGAIN = ("k.jpg", 0), ("k.jpg", 1), ("k.png", 2), ("k.txt", "one"), ("k.txt", "two")
JSON = ("k.json", json.dumps({"caption": "in json"}))
NO_TEXT = ("k.txt", " ")
OTHERS = None  # samples between members of this one


@pytest.mark.parametrize(
    ("members", "pair", "num_repeats"),
    [
        ([JPG, TEXT, OTHERS, JPG_AGAIN, TEXT_AGAIN], (0, "one"), 1),
        ([JPG, TEXT, JPG_AGAIN, TEXT_AGAIN], (0, "one"), 1),
        ([TEXT, JPG, TEXT_AGAIN, JPG_AGAIN, TEXT, JPG], (0, "one"), 2),
        ([JPG, TEXT, OTHERS, JPG_AGAIN], (0, "one"), 1),
        ([JPG, TEXT, OTHERS, TEXT_AGAIN], (0, "one"), 1),
        ([JPG, TEXT, PNG, TEXT_AGAIN], (0, "one"), 1),
        ([JPG, JSON, PNG, TEXT], (0, "in json"), 1),
        # One that is not whole does not count, and lends nothing to the next.
        ([JPG, OTHERS, JPG_AGAIN, TEXT], (1, "one"), 1),
        ([TEXT, OTHERS, JPG, TEXT_AGAIN], (0, "two"), 1),
        ([JPG, NO_TEXT, OTHERS, JPG_AGAIN, TEXT], (1, "one"), 1),
        ([JPG, OTHERS, JPG_AGAIN, OTHERS, TEXT], None, 1),
        # One sample may have images and captions in several forms.
        ([JPG, JSON, TEXT], (0, "one"), 0),
        ([JPG, PNG, TEXT], (0, "one"), 0),
        # The members of a sample may lie apart, such as all images before all captions.
        ([JPG, OTHERS, JSON, OTHERS, TEXT], (0, "one"), 0),
        ([JPG, JSON, OTHERS, TEXT], (0, "one"), 0),
        ([JPG, OTHERS, TEXT, OTHERS, JPG_AGAIN, OTHERS, TEXT_AGAIN], (0, "one"), 1),
    ],
)
def test_of_samples_with_one_key_the_first_whole_one_counts(tmp_path, caplog, members, pair, num_repeats):
    content = []
    for place, member in enumerate(members):
        name, value = member or (f"other{place}.txt", "no image")
        content.append((name, picture(value, name[-3:]) if isinstance(value, int) else value))
    dataset = load_shards([str(write_shard(tmp_path / "a.tar", [*samples([3]).items(), *content]))])
    rows = [row for row in dataset if row["image"]["member"].startswith("k.")]
    assert [row["caption"] for row in rows] == ([] if pair is None else [[pair[1]]])
    for row in rows:
        pixel = load_image(row["image"]).getpixel((8, 8))
        expected = list(COLOURS.values())[pair[0]]
        assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 12
    said = [record.message for record in caplog.records if "repeat the key" in record.message]
    assert len(said) == min(1, num_repeats)
    assert all(text.startswith(f"{num_repeats} of ") and text.endswith("a.tar/k") for text in said)


def test_an_index_of_an_older_form_is_made_anew(three_shards, monkeypatch):
    identity = shards._identity
    monkeypatch.setattr(shards, "_identity", lambda shard: identity(shard) | {"version": 1})
    load_shards([three_shards])
    monkeypatch.setattr(shards, "_identity", identity)
    assert all(shards._kept_index(shard) is None for shard in shards._names(three_shards))


def test_any_unicode(tmp_path):
    texts = ["ein Kätzchen", "猫の写真", "قطة صغيرة", "🏳️‍🌈 👩🏽‍🚀", "nul\0byte", "e\u0301"]
    members = {}
    for number, text in enumerate(texts):
        members |= {f"{text[0]}{number}.png": picture(number), f"{text[0]}{number}.txt": text}
    members |= {"bom.png": picture(), "bom.txt": "\ufeffmarked"}
    members |= {"half.png": picture(), "half.json": '{"caption": "half \\ud83d of a pair"}'}
    dataset = load_shards([str(write_shard(tmp_path / "ünï.tar", members))])
    assert captions(dataset) == [*texts, "marked", "half \ufffd of a pair"]
    assert load_image(dataset[0]["image"]).size == (16, 16)


@pytest.mark.parametrize(
    "damage, num_left",
    [
        (lambda content: content[: 4 * 2048 + 512 + 40], 4),  # within the data of the fifth image
        (lambda content: content[: 4 * 2048 + 100], 4),  # within a header
        (lambda content: content[: 4 * 2048], 4),  # between two members
        (lambda content: content[: 4 * 2048] + b"\xff" * 512 + content[4 * 2048 + 512 :], 4),
        (lambda content: content[: 4 * 2048] + bytes(512) + content[4 * 2048 + 512 :], 4),
        (lambda content: content[: 4 * 2048] + bytes(2**21), 4),
        (lambda content: b"", 0),
        (lambda content: b"no tar" * 1000, 0),
        (gzip.compress, 0),
    ],
    ids=[
        "in the data",
        "in a header",
        "between members",
        "damaged header",
        "hole",
        "preallocated",
        "empty",
        "no tar",
        "compressed",
    ],
)
def test_a_damaged_shard_is_named_and_the_others_go_on(tmp_path, caplog, damage, num_left):
    content = write_shard(tmp_path / "b.tar", samples(range(100, 107))).read_bytes()
    assert len(picture()) <= 512  # a sample takes 2048 bytes
    (tmp_path / "b.tar").write_bytes(damage(content))
    write_shard(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "c.tar").symlink_to(tmp_path / "gone")
    dataset = load_shards([str(tmp_path / "*.tar")])
    assert captions(dataset) == [f"picture number {number}" for number in [0, 1, 2, *range(100, 100 + num_left)]]
    assert all(load_image(row).size == (16, 16) for row in dataset["image"])
    named = [record.message for record in caplog.records if "b.tar" in record.message]
    assert len(named) == 1 and f"; {num_left} samples of it are used." in named[0]


def test_a_shard_that_is_no_regular_file_is_named_and_not_opened(tmp_path, caplog):
    write_shard(tmp_path / "a.tar", samples(range(3)))
    os.mkfifo(tmp_path / "b.tar")
    assert len(load_shards([str(tmp_path / "?.tar")])) == 3
    assert "b.tar cannot be read (it is no regular file)" in caplog.text


def test_an_unreadable_shard_is_tried_again(tmp_path, caplog):
    write_shard(tmp_path / "a.tar", samples(range(3)))
    (tmp_path / "b.tar").mkdir()
    assert len(load_shards([str(tmp_path / "?.tar")])) == 3
    assert "b.tar cannot be read" in caplog.text
    (tmp_path / "b.tar").rmdir()
    write_shard(tmp_path / "b.tar", samples(range(4)))
    assert len(load_shards([str(tmp_path / "?.tar")])) == 7


@pytest.mark.parametrize(
    "content, message", [(None, "No file matches .*hf download"), ({"a.cls": "1"}, "has a sample")]
)
def test_shards_without_samples_are_refused(tmp_path, content, message):
    if content:
        write_shard(tmp_path / "a.tar", content)
    with pytest.raises(ValueError, match=message):
        load_shards([str(tmp_path / "*.tar")])


def test_shards_are_one_of_the_sources(three_shards):
    train, validation = load_captioned_datasets(
        DataArguments(train_shards=[three_shards], validation_shards=[three_shards], max_train_samples=5)
    )
    assert list(iterate_captions(train)) == [f"picture number {number}" for number in range(5)]
    assert len(validation) == 21
    with pytest.raises(ValueError, match="Take one of"):
        DataArguments(train_shards=[three_shards], validation_shards=[three_shards], validation_file=["a.csv"])
    for arguments in ({"train_file": "a.csv"}, {"dataset_name": "a"}, {"caption_column": "text"}):
        with pytest.raises(ValueError, match=r"exactly one|KEY\.txt|not mixed"):
            DataArguments(train_shards=[three_shards], **arguments)


def test_a_training_on_shards_evaluates_on_a_table(three_shards, tmp_path):
    (tmp_path / "one.png").write_bytes(picture())
    (tmp_path / "held_out.csv").write_text("file,sentence\none.png,the first\n")
    train, validation = load_captioned_datasets(
        DataArguments(
            train_shards=[three_shards], validation_file=[str(tmp_path / "held_out.csv")], caption_column="sentence"
        )
    )
    assert len(train) == 21 and list(iterate_captions(validation)) == ["the first"]


def test_ranges_and_names_say_which_shards_there_should_be(three_shards, tmp_path, caplog):
    expected = captions(load_shards([three_shards]))
    assert captions(load_shards([str(tmp_path / "pairs-{0..2}.tar")])) == expected and not caplog.records
    assert captions(load_shards([str(tmp_path / "pai?s-{1..3}.tar")])) == expected[7:]
    (tmp_path / "pairs-1.tar").rename(tmp_path / "pairs-010.tar")
    dataset = load_shards([str(tmp_path / "pairs-{010..011}.tar"), str(tmp_path / "pairs-3.tar"), three_shards])
    assert captions(dataset) == [*expected[:7], *expected[7:14], *expected[14:]]
    for name in ("pairs-011.tar", "pairs-3.tar"):
        assert f"{name} cannot be read (No such file or directory)" in caplog.text


def test_the_trainer_reads_few_shards_at_a_time(tmp_path, make_trainer, monkeypatch):
    trainer = make_trainer()
    sampler = trainer._get_train_sampler()
    assert sampler.captions is not None and len(sampler) == 20
    assert sampler.shards.tolist() == [shard for shard in range(3) for _ in range(7)]
    sampler.window = 1
    shards_in_order = [sampler.shards[index] for _, index in sampler]
    assert len(set(shards_in_order[:7])) < 3 and len(set(shards_in_order)) == 3
    plain = make_trainer(no_duplicate_captions=False)._get_train_sampler()
    assert plain.captions is None and plain.shards is not None


def _read_all(dataset):
    return [load_image(row).getpixel((0, 0)) for row in dataset["image"]]


def test_rows_travel_between_processes(tmp_path):
    dataset = load_shards([str(write_shard(tmp_path / "a.tar", samples(range(8))))])
    assert pickle.loads(pickle.dumps(dataset))[:] == dataset[:]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [dataset] * 4) == [_read_all(dataset)] * 4


@pytest.fixture
def make_trainer(processor, config, three_shards, tmp_path):
    def make(**options):
        options = {"per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True, **options}
        arguments = CyCLIPTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, seed=3, **options)
        torch.manual_seed(0)
        return CyCLIPTrainer(
            CyCLIPModel(config), arguments, train_dataset=load_shards([three_shards]), processing_class=processor
        )

    return make


def batches(loader):
    return [(batch["sample_index"].tolist(), batch["pixel_values"], batch["input_ids"]) for batch in loader]


def test_any_number_of_workers_gives_the_same_batches(make_trainer):
    one, *others = (
        batches(make_trainer(dataloader_num_workers=workers).get_train_dataloader()) for workers in (0, 1, 2)
    )
    assert len(one) == 5
    for other in others:
        for expected, actual in zip(one, other, strict=True):
            assert actual[0] == expected[0]
            assert torch.equal(actual[1], expected[1]) and torch.equal(actual[2], expected[2])


def test_what_a_training_gives_to_its_workers_can_be_pickled(make_trainer):
    # As it is where processes start by spawn (macOS) or from a server (Python 3.14).
    trainer = make_trainer(dataloader_num_workers=1)
    trainer.augment = SecondView()
    loader = trainer.get_train_dataloader()
    parts = loader.dataset, loader.collate_fn, loader.worker_init_fn
    batch, again = (
        collate(samples.__getitems__([(0, 2), (0, 9)]))
        for samples, collate, _ in (parts, pickle.loads(pickle.dumps(parts)))
    )
    assert torch.equal(again["augmented_pixel_values"], batch["augmented_pixel_values"])
    assert again["sample_index"].tolist() == batch["sample_index"].tolist()


def test_no_sample_comes_twice_where_shards_do_not_divide_by_the_processes(three_shards):
    rows = CaptionedSamples(load_shards([three_shards]), seed=3)
    seen = []
    for rank in range(2):
        # As the Trainer does: 21 samples in 3 shards, a batch of 2 in each of 2 processes.
        loader = DataLoader(
            rows,
            batch_size=2,
            sampler=EpochSampler(len(rows), 4, seed=3, shards=rows.dataset["shard"][:], window=2),
            collate_fn=list,
            drop_last=True,
        )
        loader = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        seen.append([[sample["index"] for sample in batch] for batch in loader])
    assert len(seen[0]) == len(seen[1]) == 5
    drawn = [index for batches in seen for batch in batches for index in batch]
    # The broken image, 9, is replaced by a sample that its own batch does not have.
    replaced = [index for index in range(21) if drawn.count(index) > 1]
    assert 9 not in drawn and len(replaced) <= 1 and len(set(drawn)) >= 19
    assert all(len(set(batch)) == 2 for batches in seen for batch in batches)


def test_resumed_in_the_middle_of_an_epoch_is_the_same_training(make_trainer, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 3}
    whole = make_trainer(**options, dataloader_num_workers=2)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert set(whole.broken_images) == {9}
    for (name, expected), actual in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_the_script_trains_from_shards_in_two_processes(three_shards, tmp_path):
    cut = tmp_path / "pairs-2.tar"
    cut.write_bytes(cut.read_bytes()[: 5 * 2048])
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT),
         "--train_shards", three_shards, "--model_size", "nano", "--image_size", "16", "--patch_size", "8",
         "--vocab_size", "560", "--use_cpu", "--per_device_train_batch_size", "4", "--max_steps", "3",
         "--disable_tqdm", "true", "--output_dir", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    log = result.stdout + result.stderr
    assert log.count("pairs-2.tar is cut off") == 1 and "; 5 samples of it are used." in log
    assert (out / "model.safetensors").is_file() and (out / "tokenizer.json").is_file()
