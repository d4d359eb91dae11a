"""Captioned datasets from files, folders and labelled sets, and what is said of bad ones."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value

from modeling_cyclip.data.captions import DataArguments, iterate_captions, load_captioned_datasets
from tests.conftest import coloured_image


@pytest.fixture
def folder(tmp_path):
    """Three images, in a folder below the one that the tables lie in."""
    (tmp_path / "images").mkdir()
    for colour in ("red", "green", "blue"):
        coloured_image(colour).save(tmp_path / "images" / f"{colour}.png")
    return tmp_path


ROWS = [{"image": f"images/{colour}.png", "caption": f"a {colour} square"} for colour in ("red", "green", "blue")]


def write(path, rows=ROWS, delimiter=","):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        lines = [delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def load(**arguments):
    return load_captioned_datasets(DataArguments(**arguments))


@pytest.mark.parametrize(
    "suffix, delimiter", [("csv", ","), ("tsv", "\t"), ("json", ""), ("jsonl", ""), ("parquet", "")]
)
def test_tables_with_paths_relative_to_the_file(folder, suffix, delimiter, monkeypatch):
    monkeypatch.chdir(folder / "images")
    train, validation = load(train_file=write(folder / f"pairs.{suffix}", delimiter=delimiter))
    assert validation is None and train.column_names == ["image", "caption"]
    assert train["caption"][:] == [row["caption"] for row in ROWS]
    assert [image["path"] for image in train["image"]] == [str(folder / row["image"]) for row in ROWS]


def test_columns_and_delimiter_are_named(folder):
    rows = [{"file": row["image"], "title": row["caption"]} for row in ROWS]
    train, validation = load(
        train_file=write(folder / "train.csv", rows, ";"),
        validation_file=write(folder / "validation.csv", rows[:2], ";"),
        delimiter=";",
        image_column="file",
        caption_column="title",
    )
    assert len(train) == 3 and len(validation) == 2 and train["caption"][0] == "a red square"


def test_image_folder_with_metadata(folder):
    rows = [{"file_name": row["image"].removeprefix("images/"), "caption": row["caption"]} for row in ROWS]
    write(folder / "images" / "metadata.csv", rows)
    train, _ = load(dataset_name=str(folder / "images"))
    assert sorted(train["caption"]) == sorted(row["caption"] for row in ROWS)


@pytest.mark.parametrize("feature", [List(Value("string")), LargeList(Value("large_string"))])
def test_lists_of_captions_stay_lists_without_their_empty_entries(folder, feature, caplog):
    lists = [[None], ["one", "two"], ["", "three", None, " "], [], None]
    dataset = Dataset.from_dict(
        {"image": [coloured_image("red")] * len(lists), "captions": lists},
        features=Features(image=Image(), captions=feature),
    )
    dataset.to_parquet(folder / "pairs.parquet")
    train, _ = load(train_file=str(folder / "pairs.parquet"), caption_column="captions")
    assert train["caption"][:] == [["one", "two"], ["three"]]
    assert list(iterate_captions(train)) == ["one", "two", "three"]
    assert "3 of 5 training pairs" in caplog.text


@pytest.fixture
def labelled(folder):
    (folder / "labelled").mkdir()
    Dataset.from_dict(
        {"img": [coloured_image(colour) for colour in ("red", "blue", "green", "yellow")], "label": [1, -1, None, 0]},
        features=Features(img=Image(), label=ClassLabel(names=["cat", "dog"])),
    ).to_parquet(folder / "labelled" / "train.parquet")
    return {"dataset_name": str(folder / "labelled"), "image_column": "img", "caption_column": "label"}


def test_class_labels_are_put_into_words_and_missing_ones_counted(labelled, caplog):
    train, _ = load(**labelled, caption_templates=["a photo of a {}.", "the {}."])
    assert train["caption"][:] == [["a photo of a dog.", "the dog."], ["a photo of a cat.", "the cat."]]
    assert "2 of 4 training pairs" in caplog.text


def test_class_labels_without_templates_are_refused(labelled):
    with pytest.raises(ValueError, match="--caption_templates"):
        load(**labelled)
    for template, message in (
        ("a photo", "'a photo' has none"),
        ("a {} in {place}", r"'a \{\} in \{place\}' has \{place\}"),
    ):
        with pytest.raises(ValueError, match=rf"^--caption_templates: A prompt template .*{message}\.$"):
            load(**labelled, caption_templates=[template])


def test_empty_captions_are_left_out_and_counted(folder, caplog):
    rows = [*ROWS, {"image": "images/red.png", "caption": "  "}, {"image": "images/red.png", "caption": None}]
    train, _ = load(train_file=write(folder / "pairs.jsonl", rows))
    assert len(train) == 3
    assert "2 of 5 training pairs" in caplog.text


def test_max_samples(folder):
    train, _ = load(train_file=write(folder / "pairs.csv"), max_train_samples=2)
    assert len(train) == 2


@pytest.mark.parametrize(
    "rows, options, message",
    [
        (ROWS, {"caption_column": "text"}, "no column 'text'; the data has image, caption. Set --caption_column"),
        (ROWS, {"image_column": "photo"}, "no column 'photo'.*--image_column"),
        ([{**row, "caption": 7} for row in ROWS], {}, "'caption' holds int64, not captions"),
        ([{**row, "caption": [7, 8]} for row in ROWS], {}, "'caption' holds lists of int64, not captions"),
        ([{**row, "image": 7} for row in ROWS], {}, "'image' holds int64, not images"),
        ([{**row, "caption": " "} for row in ROWS], {}, "None of the 3 training pairs has a caption"),
        (
            [{**row, "image": "nowhere.png"} for row in ROWS],
            {},
            r"None of 3 images from all over the training set.*nowhere\.png",
        ),
        (ROWS, {"caption_templates": ["a {}"]}, "class label"),
    ],
)
def test_wrong_columns_are_refused_with_what_to_do(folder, rows, options, message):
    with pytest.raises(ValueError, match=message):
        load(train_file=write(folder / "pairs.jsonl", rows), **options)


def test_a_set_is_refused_only_if_no_image_from_all_over_it_can_be_opened(folder, caplog):
    gone = [{"image": f"gone/{number}.png", "caption": "a"} for number in range(500)]
    train, _ = load(train_file=write(folder / "pairs.csv", [*gone[:300], *ROWS * 20]))
    assert len(train) == 360
    assert "The first 53 of 64 images of the training set that were tried cannot be opened" in caplog.text
    with pytest.raises(ValueError, match="None of 64 images from all over the training set"):
        load(train_file=write(folder / "gone.csv", gone))


def test_unreadable_files_are_refused(folder):
    with pytest.raises(ValueError, match="does not exist"):
        load(train_file=str(folder / "gone.csv"))
    with pytest.raises(ValueError, match=r"none of \.csv"):
        load(train_file=str(folder / "images"))
    (folder / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        load(train_file=str(folder / "broken.parquet"))
    (folder / "broken.jsonl").write_text("{no json")
    with pytest.raises(ValueError, match="cannot be read as json"):
        load(train_file=str(folder / "broken.jsonl"))
    (folder / "empty.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match="it has no rows"):
        load(train_file=str(folder / "empty.csv"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(dataset_name=str(folder / "nowhere"))
