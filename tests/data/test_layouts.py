"""The common layouts of pairs on disk: how each is written, the arguments that open it, and the pairs that are read."""

import io
import json
import logging
import tarfile

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Image
from pyarrow import parquet

from modeling_cyclip.data.captions import DataArguments, load_captioned_datasets, open_pairs, open_table
from modeling_cyclip.data.images import load_image
from tests.conftest import COLOURS, coloured_image


TRAIN, OTHERS = ("red", "green", "blue"), ("yellow",)
TEXTS = {colour: f"a {colour} square" for colour in COLOURS}


def content(colour, suffix="png"):
    buffer = io.BytesIO()
    coloured_image(colour).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), quality=95)
    return buffer.getvalue()


def images(folder, colours=TRAIN, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for colour in colours:
        (folder / f"{colour}.{suffix}").write_bytes(content(colour, suffix.lower()))


def csv(path, colours=TRAIN, names=("image", "caption"), delimiter=",", before=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [names, *((f"{before}{colour}.png", TEXTS[colour]) for colour in colours)]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))


def jsonl(path, colours=TRAIN, names=("image", "caption"), as_lists=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [[TEXTS[colour]] if as_lists else TEXTS[colour] for colour in colours]
    rows = [{names[0]: f"{colour}.png", names[1]: caption} for colour, caption in zip(colours, captions, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dataset(colours=TRAIN):
    columns = {"image": [coloured_image(colour) for colour in colours], "text": [TEXTS[colour] for colour in colours]}
    return Dataset.from_dict(columns).cast_column("image", Image())


def shard(path, colours=TRAIN, kind="txt"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for colour in colours:
            caption = json.dumps({"caption": TEXTS[colour]}) if kind == "json" else TEXTS[colour]
            for name, part in ((f"{colour}.png", content(colour)), (f"{colour}.{kind}", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))


def a_csv(folder):
    images(folder)
    csv(folder / "pairs.csv")


def a_list_of_open_clip(folder):
    images(folder)
    csv(folder / "train.csv", names=("filepath", "title"), delimiter="\t")


def a_tsv(folder):
    images(folder)
    csv(folder / "pairs.tsv", names=("file_name", "text"), delimiter="\t")


def json_lines_with_lists(folder):
    images(folder)
    jsonl(folder / "pairs.jsonl", names=("image", "captions"), as_lists=True)


def a_json_list(folder):
    images(folder)
    (folder / "pairs.json").write_text(json.dumps([{"img": f"{c}.png", "sentences": [TEXTS[c]]} for c in TRAIN]))


def coco(folder):
    images(folder / "images")
    value = {
        "images": [{"id": number, "file_name": f"images/{colour}.png"} for number, colour in enumerate(TRAIN)],
        "annotations": [{"image_id": number, "caption": TEXTS[colour]} for number, colour in enumerate(TRAIN)],
    }
    (folder / "captions_train.json").write_text(json.dumps(value))


def parquet_of_paths(folder):
    images(folder)
    columns = {"image_path": [f"{colour}.png" for colour in TRAIN], "caption": [TEXTS[colour] for colour in TRAIN]}
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")


def parquet_of_bytes(folder):
    columns = {"image": [content(colour) for colour in TRAIN], "caption": [TEXTS[colour] for colour in TRAIN]}
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")


def parquet_of_structs(folder):
    structs = [{"bytes": content(colour), "path": f"{colour}.png"} for colour in TRAIN]
    columns = {"image": structs, "caption": [TEXTS[colour] for colour in TRAIN]}
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")


def parquet_of_pandas(folder):
    # With an index, and with categories.
    captions = pa.array([TEXTS[colour] for colour in TRAIN]).dictionary_encode()
    columns = {"jpg": [content(colour) for colour in TRAIN], "txt": captions, "__index_level_0__": [4, 5, 6]}
    parquet.write_table(pa.table(columns), folder / "pairs.parquet")


def a_download_of_the_hub(folder):
    (folder / "data").mkdir()
    dataset().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    dataset(OTHERS).to_parquet(folder / "data" / "validation-00000-of-00001.parquet")


def an_image_folder(folder):
    images(folder)
    csv(folder / "metadata.csv", names=("file_name", "caption"))


def an_image_folder_with_splits(folder):
    for split, colours in (("train", TRAIN), ("val", OTHERS)):
        images(folder / split, colours)
        jsonl(folder / split / "metadata.jsonl", colours, names=("file_name", "text"))


def texts_beside_images(folder):
    images(folder / "a", TRAIN[:1], "jpg")
    images(folder / "b", TRAIN[1:], "PNG")
    for place, colours in (("a", TRAIN[:1]), ("b", TRAIN[1:])):
        for colour in colours:
            (folder / place / f"{colour}.txt").write_text(TEXTS[colour] + "\n")


def json_beside_images(folder):
    images(folder, suffix="jpg")
    for colour in TRAIN:
        (folder / f"{colour}.json").write_text(json.dumps({"caption": TEXTS[colour], "url": "x"}))


def texts_beside_images_with_splits(folder):
    for split, colours in (("train", TRAIN), ("validation", OTHERS)):
        images(folder / split, colours)
        for colour in colours:
            (folder / split / f"{colour}.png.txt").write_text(TEXTS[colour])


def a_saved_dataset(folder):
    dataset().save_to_disk(folder)


def saved_splits(folder):
    DatasetDict(train=dataset(), val=dataset(OTHERS)).save_to_disk(folder)


def tables_of_splits(folder):
    images(folder, COLOURS)
    csv(folder / "train.csv")
    csv(folder / "validation.csv", OTHERS)


def a_table_among_images(folder):
    images(folder / "images")
    csv(folder / "captions.csv", before="images/")


def karpathy_tables(folder):
    images(folder / "tables")
    images(folder / "tables", OTHERS)
    jsonl(folder / "tables" / "train.jsonl", names=("image", "captions"), as_lists=True)
    jsonl(folder / "tables" / "val.jsonl", OTHERS, names=("image", "captions"), as_lists=True)


def shards(folder):
    shard(folder / "data" / "pairs-0.tar", TRAIN[:2])
    shard(folder / "data" / "pairs-1.tar", TRAIN[2:], "json")


def shards_of_splits(folder):
    shard(folder / "train-000.tar")
    shard(folder / "val-000.tar", OTHERS)


def classes_of_images(folder):
    for colour in TRAIN:
        images(folder / f"{colour}_square", [colour])


# How it is written, the arguments, and whether there is a validation set.
LAYOUTS = [
    (a_csv, "--train_file {}/pairs.csv", False),
    (a_list_of_open_clip, "--train_file {}/train.csv", False),
    (a_tsv, "--train_file {}/pairs.tsv", False),
    (json_lines_with_lists, "--train_file {}/pairs.jsonl", False),
    (a_json_list, "--train_file {}/pairs.json", False),
    (coco, "--train_file {}/captions_train.json", False),
    (parquet_of_paths, "--train_file {}/pairs.parquet", False),
    (parquet_of_bytes, "--train_file {}/pairs.parquet", False),
    (parquet_of_structs, "--train_file {}/pairs.parquet", False),
    (parquet_of_pandas, "--train_file {}/pairs.parquet", False),
    (a_download_of_the_hub, "--dataset_name {} --validation_split validation", True),
    (an_image_folder, "--dataset_name {}", False),
    (an_image_folder_with_splits, "--dataset_name {} --validation_split validation", True),
    (texts_beside_images, "--dataset_name {}", False),
    (json_beside_images, "--dataset_name {}", False),
    (texts_beside_images_with_splits, "--dataset_name {} --validation_split validation", True),
    (a_saved_dataset, "--dataset_name {}", False),
    (saved_splits, "--dataset_name {} --validation_split validation", True),
    (tables_of_splits, "--dataset_name {} --validation_split validation", True),
    (a_table_among_images, "--dataset_name {}", False),
    (karpathy_tables, "--dataset_name {}/tables --validation_split val", True),
    (shards, "--train_shards {}/data/*.tar", False),
    (shards, "--dataset_name {}/data", False),
    (shards_of_splits, "--dataset_name {} --validation_split validation", True),
    (classes_of_images, "--dataset_name {} --caption_column label --caption_templates", False),
]


def read(dataset):
    """The pairs, sorted: the colour of each image by its pixels, and its caption."""
    pairs = []
    for row in dataset:
        pixel = load_image(row["image"]).getpixel((8, 8))
        colour = min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLOURS[name], strict=True)))
        (caption,) = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
        pairs.append((colour, caption))
    return sorted(pairs)


@pytest.mark.parametrize(
    "write, line, has_validation", LAYOUTS, ids=[f"{write.__name__} {line}" for write, line, _ in LAYOUTS]
)
def test_a_layout_gives_its_pairs(tmp_path, monkeypatch, write, line, has_validation):
    write(tmp_path)
    # Paths are relative to the file, wherever one stands.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = line.format(tmp_path).split()
    arguments = {name[2:]: value for name, value in zip(words[::2], [*words[1::2], ["a {}"]], strict=False)}
    if "train_shards" in arguments:
        arguments["train_shards"] = [arguments["train_shards"]]
    train, validation = load_captioned_datasets(DataArguments(**arguments))
    assert read(train) == sorted((colour, TEXTS[colour]) for colour in TRAIN)
    if has_validation:
        assert read(validation) == sorted((colour, TEXTS[colour]) for colour in OTHERS)
    else:
        assert validation is None


@pytest.mark.parametrize("name", ["set[1]", "set ?", "my * set", "set{1..2}"])
@pytest.mark.parametrize("write", [an_image_folder, texts_beside_images, tables_of_splits, a_saved_dataset, shards])
def test_the_name_of_a_folder_is_no_pattern(tmp_path, write, name):
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "set1").mkdir()
    a_csv(tmp_path / "set1")
    write(folder)
    folder = folder / "data" if write is shards else folder
    train, _ = load_captioned_datasets(DataArguments(dataset_name=str(folder)))
    assert read(train) == sorted((colour, TEXTS[colour]) for colour in TRAIN)


def test_open_pairs_and_open_table_take_any_source(tmp_path):
    shards(tmp_path)
    a_csv(tmp_path)
    expected = sorted((colour, TEXTS[colour]) for colour in TRAIN)
    for source in (
        str(tmp_path / "pairs.csv"),
        str(tmp_path),
        [str(tmp_path / "data/*.tar")],
        str(tmp_path / "data/*.tar"),
    ):
        assert read(open_pairs(source)) == expected
    table, folder = open_table(str(tmp_path / "pairs.csv"))
    assert folder == tmp_path and table.column_names == ["image", "caption"]


def test_what_has_no_partner_is_counted(tmp_path, caplog):
    texts_beside_images(tmp_path)
    (tmp_path / "b" / "blue.txt").write_text(" \n")
    (tmp_path / "a" / "alone.txt").write_text("a caption")
    assert len(open_pairs(str(tmp_path))) == 2
    assert "1 of 3 images have no usable caption beside them" in caplog.text and "blue.PNG" in caplog.text
    assert "1 captions have no image beside them" in caplog.text and "alone.txt" in caplog.text


def test_a_metadata_file_that_does_not_match_its_images_is_said(tmp_path, caplog):
    images(tmp_path, ("red", "green", "yellow"))
    csv(tmp_path / "metadata.csv", names=("file_name", "caption"))
    assert len(open_pairs(str(tmp_path))) == 3
    assert "1 of 3 images of" in caplog.text and "yellow.png" in caplog.text
    assert "1 of 3 images that metadata.csv names are not in" in caplog.text and "blue.png" in caplog.text


@pytest.mark.parametrize(
    "write, split, message",
    [
        (saved_splits, "test", "no split 'test', but train, val"),
        (a_saved_dataset, "test", "no splits: all of it is 'train'"),
        (tables_of_splits, "test", "cannot be loaded"),
    ],
)
def test_a_split_that_is_not_there_is_refused(tmp_path, write, split, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_pairs(str(tmp_path), split)


def test_a_source_that_is_not_there_is_refused_as_what_it_looks_like(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.csv does not exist"):
        open_pairs(str(tmp_path / "gone.csv"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_pairs(str(tmp_path / "gone"))


def test_the_file_taken_from_a_folder_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    a_table_among_images(tmp_path)
    open_pairs(str(tmp_path))
    assert "is captions.csv" in caplog.text
