"""Public collections become shards and tables that the training and the evaluation read."""

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import config as datasets_config
from PIL import Image
from pyarrow import parquet

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.commands.prepare import main
from modeling_cyclip.data.captions import DataArguments, load_captioned_datasets
from modeling_cyclip.data.images import load_image
from modeling_cyclip.data.prepare import read_karpathy, write_url_table
from modeling_cyclip.data.shards import load_shards
from modeling_cyclip.evaluation.arguments import DataArguments as EvaluationDataArguments
from modeling_cyclip.evaluation.benchmarks import open_benchmark
from modeling_cyclip.evaluation.evaluation_set import load_evaluation_set
from tests.conftest import COLOURS, coloured_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


CC3M = 'a "quoted" caption\thttp://a.org/1.jpg\na cat , a dog\thttps://a.org/2.jpg?x=1\n'
CC12M = 'http://a.org/1.jpg\ta "quoted" caption\nhttps://a.org/2.jpg?x=1\ta cat , a dog\n'


@pytest.mark.parametrize("content, form", [(CC3M, "caption, URL"), (CC12M, "URL, caption")])
def test_lists_of_either_order_are_read(tmp_path, capsys, content, form):
    bad = "no tab\n\nthree\ttabs\there\nhttp://a.org/3.jpg\t \nurl\tcaption\n"
    (tmp_path / "list.tsv").write_text(content + bad + content.replace("cat", "c\u00e4t\u2028"))
    assert write_url_table(tmp_path / "list.tsv", tmp_path / "list.parquet") == (4, 5)
    rows = parquet.read_table(tmp_path / "list.parquet").to_pylist()
    assert [row["url"] for row in rows] == ["http://a.org/1.jpg", "https://a.org/2.jpg?x=1"] * 2
    assert rows[0]["caption"] == 'a "quoted" caption' and rows[3]["caption"] == "a c\u00e4t\u2028 , a dog"
    assert f"Columns of list.tsv: {form}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (
            b"caption,url\na cat,http://a.org/1.jpg\n",
            "No column, or several, may hold the urls; .*columns caption,url. .*--url_column",
        ),
        (
            b"URL\timage_url\ttext\nhttp://a.org/1.jpg\thttp://a.org/2.jpg\ta cat\n",
            "may hold the urls.* Set --url_column",
        ),
        (b"url\tcaption\na cat\thttp://a.org/1.jpg\n", "has no row with a URL and a caption"),
        (b"http://a.org/1.jpg\ta cat\ta dog\n", "two columns divided by a tab"),
        (b"\xff\xd8\xff\xe0 a picture", "not in UTF-8"),
    ],
)
def test_what_is_no_list_of_urls_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        write_url_table(tmp_path / "list.tsv", tmp_path / "list.parquet")


ROWS = {
    "URL": ["http://a.org/1.jpg", "gone", "https://a.org/2.jpg?x=1", None],
    "TEXT": ['a "quoted" caption', "b", "a cat, a dog", "d"],
}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_with_a_heading_is_read(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table(ROWS), path)
    elif suffix == "jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(ROWS, row, strict=True))) + "\n" for row in zip(*ROWS.values(), strict=True))
        )
    else:
        quoting = csv.QUOTE_MINIMAL if suffix == "csv" else csv.QUOTE_NONE
        with path.open("w", newline="") as file:
            writer = csv.writer(
                file,
                delimiter="," if suffix == "csv" else "\t",
                quoting=quoting,
                quotechar='"' if suffix == "csv" else None,
            )
            writer.writerows([ROWS, *zip(*ROWS.values(), strict=True)])
    assert write_url_table(path, tmp_path / "pairs.parquet") == (2, 2)
    rows = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert rows == [
        {"url": "http://a.org/1.jpg", "caption": 'a "quoted" caption'},
        {"url": "https://a.org/2.jpg?x=1", "caption": "a cat, a dog"},
    ]


def test_columns_can_be_named(tmp_path):
    (tmp_path / "list.csv").write_text("url,thumbnail,caption,raw\nhttp://a.org/1.jpg,http://a.org/2.jpg,a,b\n")
    assert write_url_table(tmp_path / "list.csv", tmp_path / "pairs.parquet", "thumbnail", "raw") == (1, 0)
    assert parquet.read_table(tmp_path / "pairs.parquet").to_pylist() == [
        {"url": "http://a.org/2.jpg", "caption": "b"}
    ]


def test_strips_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    asked = []

    def download(output_folder, **options):
        asked.append(options)
        (Path(output_folder) / "00000_stats.json").write_text(
            json.dumps({"status_dict": {"success": 1, "aspect ratio too large": 1}})
        )

    monkeypatch.setitem(sys.modules, "img2dataset", SimpleNamespace(download=download))
    (tmp_path / "list.tsv").write_text(CC3M)
    main(["urls", str(tmp_path / "list.tsv"), str(tmp_path / "out")])
    assert "1 of 2 images are there. Of the others: 1 aspect ratio too large." in capsys.readouterr().out
    main(["urls", str(tmp_path / "list.tsv"), str(tmp_path / "out"), "--max_aspect_ratio", "16"])
    assert [options["max_aspect_ratio"] for options in asked] == [3, 16]
    with pytest.raises(SystemExit, match=r"--max_aspect_ratio is at least 1, got 0\.3"):
        main(["urls", str(tmp_path / "list.tsv"), str(tmp_path / "out"), "--max_aspect_ratio", "0.3"])


def test_without_img2dataset_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    with pytest.raises(SystemExit, match=r"error: Downloading needs img2dataset .* pip install -e \"\.\[prepare\]\""):
        main(["urls", str(tmp_path / "list.tsv"), str(tmp_path / "out")])


def picture(number):
    buffer = io.BytesIO()
    if number == 12:
        Image.new("RGB", (10_000, 2)).save(buffer, "png")
        return buffer.getvalue()
    size = 40 if number % 2 else 16
    coloured_image(list(COLOURS)[number % 4], number // 4, size).resize((2 * size, size)).save(buffer, "jpeg")
    return buffer.getvalue()


class Pictures(BaseHTTPRequestHandler):
    """Of thirteen pictures the third is gone, the fourth is a page, and the last is a strip."""

    def do_GET(self):
        number = int(self.path.strip("/").split(".")[0])
        self.send_response(404 if number == 2 else 200)
        self.end_headers()
        self.wfile.write({2: b"gone", 3: b"<html>moved</html>"}.get(number) or picture(number))

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def download(url_list, out):
    command = [
        sys.executable,
        "-m",
        "modeling_cyclip.commands.prepare",
        "urls",
        str(url_list),
        str(out),
        "--image_size",
        "24",
    ]
    command += ["--processes", "1", "--threads", "2", "--samples_per_shard", "6"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(importlib.util.find_spec("img2dataset") is None, reason="img2dataset is not installed")
def test_downloaded_shards_train(tmp_path, address, config, processor):
    lines = [
        f'a "{colour}" picture {number}\t{address}/{number}.jpg\n'
        for number, colour in enumerate([*COLOURS] * 3 + ["red"])
    ]
    (tmp_path / "list.tsv").write_text("".join(lines))
    result = download(tmp_path / "list.tsv", tmp_path / "shards")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "10 of 13 images are there. Of the others:" in result.stdout
    assert "1 HTTP Error 404: Not Found" in result.stdout and "1 aspect ratio too large" in result.stdout
    assert "--train_shards" in result.stdout
    assert not list((tmp_path / "shards").glob("tmp*"))

    dataset = load_shards([str(tmp_path / "shards" / "*.tar")])
    found = [caption for captions in dataset["caption"] for caption in captions]
    kept = [number for number in range(12) if number not in (2, 3)]
    assert sorted(found) == sorted(f'a "{[*COLOURS][number % 4]}" picture {number}' for number in kept)
    for caption, image in zip(found, dataset["image"], strict=True):
        # The smaller ones as they are, the larger ones with the shorter side asked for; none is cropped.
        assert load_image(image).size == ((48, 24) if int(caption.split()[-1]) % 2 else (32, 16))

    args = CyCLIPTrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=2, per_device_train_batch_size=4, save_strategy="no"
    )
    trainer = CyCLIPTrainer(CyCLIPModel(config), args, train_dataset=dataset, processing_class=processor)
    assert trainer.train().training_loss > 0 and not trainer.broken_images

    (tmp_path / "gone.tsv").write_text(f"a caption\t{address}/2.jpg\n")
    result = download(tmp_path / "gone.tsv", tmp_path / "none")
    assert result.returncode != 0 and "error: None of 1 images could be downloaded: 1 HTTP Error 404" in result.stderr


def karpathy_json(folder, with_folders=True):
    """Two images of each of COCO's four splits, three captions each; Flickr30k's has no folders."""
    images = []
    for number, split in enumerate(["train", "restval", "val", "test"] * 2):
        path = (
            Path("train2014" if split == "train" else "val2014", f"{number}.png") if with_folders else f"{number}.png"
        )
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        coloured_image(list(COLOURS)[number // 2]).save(folder / path)
        sentences = [{"raw": f" caption {letter} of {number}\n", "tokens": []} for letter in "abc"] + [{"raw": " "}]
        image = {"filename": f"{number}.png", "split": split, "sentences": sentences, "imgid": number}
        images.append({**image, "filepath": path.parent.name} if with_folders else image)
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder / "dataset.json"


def test_karpathys_splits_become_tables_that_train_and_evaluate(tmp_path, capsys):
    source = karpathy_json(tmp_path / "coco")
    main(["karpathy", str(source), str(tmp_path / "tables" / "coco")])
    tables = tmp_path / "tables" / "coco"
    rows = {path.stem: [json.loads(line) for line in path.open()] for path in tables.iterdir()}
    assert [row["image"] for row in rows["train"]] == [
        f"../../coco/{path}" for path in ("train2014/0.png", "val2014/1.png", "train2014/4.png", "val2014/5.png")
    ]
    assert rows["test"][1]["captions"] == ["caption a of 7", "caption b of 7", "caption c of 7"]
    assert set(rows) == {"train", "val", "test"} and len(rows["val"]) == 2
    assert "train.jsonl: 4 images, 12 captions" in capsys.readouterr().out

    train, validation = load_captioned_datasets(
        DataArguments(
            train_file=str(tables / "train.jsonl"),
            validation_file=str(tables / "val.jsonl"),
            caption_column="captions",
        )
    )
    assert (len(train), len(validation)) == (4, 2)
    assert all(load_image(image).size == (16, 16) for image in train["image"])

    columns = EvaluationDataArguments(str(tables), image_column="image")
    evaluated = load_evaluation_set(open_benchmark(str(tables)), "test", columns)
    assert evaluated.captions == [row["captions"] for row in rows["test"]]
    assert all(load_image(image).size == (16, 16) for image in evaluated.dataset["image"])


def test_flickrs_images_lie_in_one_folder(tmp_path):
    source = karpathy_json(tmp_path / "images", with_folders=False)
    source = source.rename(tmp_path / "dataset_flickr30k.json")
    out = str(tmp_path / "tables")
    main(["karpathy", str(source), out, "--image_dir", str(tmp_path / "images"), "--splits", "test"])
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["test.jsonl"]
    assert "../images/3.png" in (tmp_path / "tables" / "test.jsonl").read_text()


def test_images_that_are_not_there_are_named(tmp_path):
    source = karpathy_json(tmp_path / "coco")
    (tmp_path / "coco" / "train2014" / "4.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 4 images of the split train are not in .*train2014/4.png.*--splits"):
        main(["karpathy", str(source), str(tmp_path / "tables")])
    assert not (tmp_path / "tables").exists()
    with pytest.raises(SystemExit, match="need a folder of their own"):
        main(["karpathy", str(source), str(tmp_path)])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        ("{", "not a Karpathy json"),
        ("[]", "not a Karpathy json"),
        ('{"images": [{"file_name": "1.jpg", "id": 1}], "annotations": []}', "KeyError: 'split'"),
        ('{"images": [{"filename": "1.jpg", "split": "train", "sentences": ["a"]}]}', "not a Karpathy json"),
        ('{"images": [{"filename": "1.jpg", "split": "dev", "sentences": []}]}', "in a split 'dev'"),
    ],
)
def test_what_is_no_karpathy_json_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_karpathy(tmp_path / "dataset.json")
