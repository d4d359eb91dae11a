"""Tables as people have them: the pairs that are read, or the line that is said. Each row is a case."""

import json
import logging
import re
import shutil

import pytest

from modeling_cyclip.data.captions import DataArguments, load_captioned_datasets
from tests.conftest import coloured_image


@pytest.fixture
def folder(tmp_path):
    """Four images."""
    for name, colour in zip("abcd", ("red", "green", "blue", "yellow"), strict=True):
        coloured_image(colour).save(tmp_path / f"{name}.png")
    return tmp_path


def load(folder, name, content, **arguments):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    train, _ = load_captioned_datasets(DataArguments(train_file=str(folder / name), **arguments))
    assert train.column_names == ["image", "caption"]
    return train["caption"][:]


COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 9, "caption": "a lake"},
        {"image_id": 7, "caption": "a dog"},
        {"image_id": 7, "caption": "a puppy"},
    ],
}

READ = {
    # name of the case: name of the file, its content, captions
    "quotation marks in a tsv": (
        "p.tsv", 'image\tcaption\na.png\t"hello" said\nb.png\t"open\nc.png\tthe "end"\n', ['"hello" said', '"open', 'the "end"']
    ),
    "quotation marks in a csv": (
        "p.csv", 'image,caption\na.png,"a ""red"" door, open"\nb.png,a 5" nail\n', ['a "red" door, open', 'a 5" nail']
    ),
    "line breaks within quotation marks": ("p.csv", 'image,caption\r\na.png,"two\r\nlines"\r\nb.png,b\r\n', ["two\r\nlines", "b"]),
    "words that look like gaps": (
        "p.csv", "image,caption\na.png,NA\nb.png,null\nc.png,None\nd.png,nan\n", ["NA", "null", "None", "nan"]
    ),
    "captions that are numbers": ("p.csv", "image,caption\na.png,007\nb.png,1.50\n", ["007", "1.50"]),
    "captions that are dates": ("p.jsonl", '{"image": "a.png", "caption": "2020-01-01"}\n', ["2020-01-01"]),
    "blank lines": ("p.csv", "\nimage,caption\n\na.png,a\n\nb.png,b\n\n", ["a", "b"]),
    "spaces around the names": ("p.csv", " image , caption\na.png, a dog\n b.png ,b\n", ["a dog", "b"]),
    "names in quotation marks": ("p.csv", '"image","caption"\n"a.png","a"\n', ["a"]),
    "names in capitals": ("p.csv", "Image,Caption\na.png,a\n", ["a"]),
    "an index of pandas": ("p.csv", ",image,caption\n0,a.png,a\n1,b.png,b\n", ["a", "b"]),
    "UTF-16, as Excel writes it": ("p.csv", "image\tcaption\na.png\tun café\n".encode("utf-16"), ["un café"]),
    "UTF-16, read backwards": ("p.csv", b"\xfe\xff" + "image,caption\na.png,é\n".encode("utf-16-be"), ["é"]),
    "UTF-8 with a mark": ("p.csv", "image,caption\na.png,é\n".encode("utf-8-sig"), ["é"]),
    "json with a mark": ("p.jsonl", '{"image": "a.png", "caption": "é"}\n'.encode("utf-8-sig"), ["é"]),
    "json in UTF-16": ("p.json", '[{"image": "a.png", "caption": "é"}]'.encode("utf-16"), ["é"]),
    "semicolons": ("p.csv", "image;caption\na.png;a, b\n", ["a, b"]),
    "tabs in a csv": ("p.csv", 'filepath\ttitle\na.png\t"""x"" said"\n', ['"x" said']),
    "JSON lists in cells": (
        "p.csv", 'image,caption\na.png,"[""a dog"", ""a pet""]"\nb.png,a cat\n', [["a dog", "a pet"], ["a cat"]]
    ),
    "Python lists in cells": ("p.csv", "image,caption\na.png,\"['a dog', \"\"it's\"\"]\"\n", [["a dog", "it's"]]),
    "brackets that are words": ("p.csv", "image,caption\na.png,[sic] a dog\nb.png,[dog]\n", ["[sic] a dog", "[dog]"]),
    "strings and lists mixed": (
        "p.jsonl", '{"image": "a.png", "caption": "a"}\n{"image": "b.png", "caption": ["b", "c"]}\n', [["a"], ["b", "c"]]
    ),
    "captions by file name": ("p.json", '{"a.png": "a", "b.png": "b"}', ["a", "b"]),
    "COCO's captions": ("captions_val.json", json.dumps(COCO), [["a dog", "a puppy"], ["a lake"]]),
    "an extension in capitals": ("P.CSV", "image,caption\na.png,a\n", ["a"]),
    "a name that is a pattern": ("pairs[v2].csv", "image,caption\na.png,a\n", ["a"]),
    "a name with a question mark": ("p?.jsonl", '{"image": "a.png", "caption": "a"}\n', ["a"]),
    "a name with a star and a space": ("p *.csv", "image,caption\na.png,a\n", ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("name, content, captions", READ.values(), ids=READ)
def test_a_table_is_read_as_it_was_written(folder, name, content, captions):
    # Whatever a pattern would find beside it.
    (folder / "pairsv.csv").write_text("image,caption\na.png,another table\n")
    (folder / "pq.jsonl").write_text('{"image": "a.png", "caption": "another table"}\n')
    (folder / "p other.csv").write_text("image,caption\na.png,another table\n")
    assert load(folder, name, content) == captions


REFUSED = {
    # name of the case: name of the file, its content, what is said
    "too many fields": ("p.csv", "image,caption\na.png,a\nb.png,b, c\n", "line 3: 3 fields, where the header has 2: 'b.png,b, c'"),
    "too many fields from the first row on": ("p.csv", "image,caption\na.png,a,b\nb.png,b,c\n", "line 2: 3 fields"),
    "too few fields": ("p.csv", "image,caption\na.png,a\n\nb.png\n", "line 4: 1 field, where the header has 2"),
    "too many fields in a tsv": ("p.tsv", "image\tcaption\na.png\ta\nb.png\tb\tc\n", "line 3: 3 fields"),
    "an open quotation mark": (
        "p.csv", 'image,caption\na.png,a\nb.png,"open\nc.png,"the end" of it\nd.png,d\n', "line 3: a quotation mark opens"
    ),
    "an open quotation mark up to the end": ("p.csv", 'image,caption\na.png,a\nb.png,"open\nc.png,c\n', "line 3: a quotation mark"),
    "an open quotation mark in a csv with tabs": (
        "p.csv", 'image\tcaption\na.png\t"open\nb.png\t"the end" of it\n', "line 2: a quotation mark"
    ),
    "an open quotation mark that another row closes": (
        "p.csv", 'image,caption\na.png,"open\nb.png,b\nc.png,a nail of 5"\nd.png,d\n', "line 2: a quotation mark"
    ),
    "Windows-1252": ("p.csv", "image,caption\na.png,a\nb.png,un café noir\n".encode("cp1252"), "line 3 is not in UTF-8.*un café noir"),
    "UTF-16 without a mark": ("p.csv", "image,caption\na.png,a\n".encode("utf-16-le"), "UTF-16 without its mark"),
    "two columns of one name": ("p.csv", "image,caption,caption\na.png,a,b\n", "two columns named 'caption'"),
    "no header": ("p.csv", "a.png,a dog\nb.png,a cat\n", "a first line with the names of the columns"),
    "nothing": ("p.csv", "", "is empty"),
    "no rows": ("p.csv", "image,caption\n", "has no rows"),
    "no rows in json": ("p.json", "[]", "has no rows"),
    "json that ends early": ("p.jsonl", '{"image": "a.png", "caption": "a"}\n{"image": "b.png"\n', "line 2:"),
    "json of other things": ("p.json", '[{"image": "a.png", "caption": "a"}, 7]', "row 2 is 7, not an object"),
    "a number among words": (
        "p.jsonl", '{"image": "a.png", "caption": "a"}\n{"image": "b.png", "caption": 7}\n', "row 2: column 'caption' has 7"
    ),
    "a list that is none": (
        "p.csv", "image,caption\na.png,\"['a', 'b']\"\nb.png,\"['b' 'c', d']\"\n", r"Row 2 has a caption that begins like a list"
    ),
    "Karpathy's json": (
        "dataset_coco.json", '{"images": [{"filename": "a.png", "sentences": []}], "dataset": "coco"}', "cyclip prepare karpathy"
    ),
    "boxes instead of captions": (
        "instances.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": []}]}',
        "annotations are no captions",
    ),
    "lists of rows under names": ("p.json", '{"train": [{"image": "a.png", "caption": "a"}]}', "lists named train"),
    "two unknown columns": (
        "p.csv", "x,y\na.png,a\n",
        "No column has a usual name of images; no column has a usual name of captions; the data has x, y. Set --image_column "
        "and --caption_column",
    ),
    "two columns that fit": ("p.csv", "image,text,title\na.png,a,b\n", "Several columns may hold the captions, text and title"),
    "a column of URLs": ("p.csv", "url,caption\nhttps://a/b.png,a\n", "'url' holds URLs.*cyclip prepare urls"),
    "URLs for images": ("p.csv", "image,caption\nhttp://a/b.png,a\n", "'image' holds URLs.*cyclip prepare urls"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, line", REFUSED.values(), ids=REFUSED)
def test_a_table_is_refused_with_what_is_wrong(folder, name, content, line):
    with pytest.raises(ValueError, match=line) as refusal:
        load(folder, name, content)
    assert "\n" not in str(refusal.value)


def test_both_columns_that_are_not_there_are_named(folder):
    with pytest.raises(
        ValueError, match=r"no column 'a'; there is no column 'b'; .*--image_column and --caption_column"
    ):
        load(folder, "p.csv", "image,caption\na.png,a\n", image_column="a", caption_column="b")


def test_paths_with_backslashes_and_of_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "sub").mkdir()
    shutil.copy(folder / "a.png", folder / "sub" / "a.png")
    (folder / "p.csv").write_text("image,caption\nsub\\a.png,a\n~/b.png,b\n,c\n")
    train, _ = load_captioned_datasets(DataArguments(train_file="~/p.csv"))
    assert [image and image["path"] for image in train["image"]] == [
        str(folder / "sub/a.png"),
        str(folder / "b.png"),
        None,
    ]


def test_a_backslash_in_the_name_of_a_file_stays(folder):
    shutil.copy(folder / "a.png", folder / "odd\\name.png")
    (folder / "p.csv").write_text("image,caption\nodd\\name.png,a\n")
    train, _ = load_captioned_datasets(DataArguments(train_file=str(folder / "p.csv")))
    assert train["image"][0]["path"] == str(folder / "odd\\name.png")


def test_what_is_found_is_said(folder, caplog):
    caplog.set_level(logging.INFO)
    load(folder, "p.csv", "filepath\ttitle\na.png\ta\n".encode("utf-16"))
    caplog.clear()
    load_captioned_datasets(DataArguments(train_file=str(folder / "p.csv")))
    for text in (
        "column of images is 'filepath'",
        "column of captions is 'title'",
        r"divided by '\\t'",
        "is in UTF-16",
    ):
        assert re.search(text, caplog.text)


def test_a_tsv_with_doubled_marks_is_warned_of(folder, caplog):
    load(folder, "p.tsv", 'image\tcaption\na.png\t"hello" said\n')
    assert "look quoted" not in caplog.text
    load(folder, "q.tsv", 'image\tcaption\na.png\t"""hello"" said"\n')
    assert "look quoted" in caplog.text
    caplog.clear()
    load_captioned_datasets(DataArguments(train_file=str(folder / "q.tsv")))
    assert "look quoted" in caplog.text


def test_a_changed_table_is_read_anew(folder):
    assert load(folder, "p.csv", "image,caption\na.png,a\n") == ["a"]
    assert load(folder, "p.csv", "image,caption\na.png,a\nb.png,b\n") == ["a", "b"]


def test_large_tables_are_read_in_blocks(folder, monkeypatch):
    monkeypatch.setattr("modeling_cyclip.data.tables.BLOCK_SIZE", 200)
    captions = [f'"number {number}, with a ""mark"""' for number in range(100)]
    rows = "".join(f"a.png,{caption}\n" for caption in captions)
    assert load(folder, "p.csv", f"image,caption\n{rows}") == [
        f'number {number}, with a "mark"' for number in range(100)
    ]
    open_quote = "image,caption\n" + 'a.png,"open\n' + "a.png,b\n" * 100
    with pytest.raises(ValueError, match="line 2: a quotation mark"):
        load(folder, "q.csv", open_quote)
