"""Several sources in one set: their shares of an epoch, and what is refused."""

import json
import tarfile
from collections import Counter

import numpy as np
import pytest

from modeling_cyclip.data.captions import DataArguments, load_captioned_datasets
from modeling_cyclip.data.sampler import make_train_sampler
from tests.conftest import coloured_image
from tests.data.test_shards import samples, write_shard


@pytest.fixture
def folder(tmp_path):
    """Tables of 10 and of 30 pairs; the second has other columns, and lists."""
    coloured_image("red").save(tmp_path / "red.png")
    (tmp_path / "a.csv").write_text("image,caption\n" + "".join(f"red.png,a {row}\n" for row in range(10)))
    rows = "".join(json.dumps({"file": "red.png", "captions": [f"b {row}"]}) + "\n" for row in range(30))
    (tmp_path / "b.jsonl").write_text(rows)
    return tmp_path


def load(*files, **arguments):
    train, _ = load_captioned_datasets(DataArguments(train_file=[str(file) for file in files], **arguments))
    return train


def counts(dataset):
    """How many pairs are of each source, and how often each caption comes."""
    captions = [caption for captions in dataset["caption"] for caption in captions]
    return Counter(caption[0] for caption in captions), Counter(captions)


def test_several_files_are_one_set(folder):
    sources, captions = counts(load(folder / "a.csv", folder / "b.jsonl"))
    assert sources == {"a": 10, "b": 30} and set(captions.values()) == {1}


@pytest.mark.parametrize(
    "weights, expected",
    [
        ([0.25, 0.75], {"a": 10, "b": 30}),
        ([1, 1], {"a": 30, "b": 30}),
        ([0.7, 0.3], {"a": 70, "b": 30}),
        ([0.1, 0.9], {"a": 10, "b": 90}),
        ([35, 60], {"a": 18, "b": 30}),
    ],
)
def test_weights_are_shares_and_leave_nothing_out(folder, weights, expected):
    sources, captions = counts(load(folder / "a.csv", folder / "b.jsonl", source_weights=weights))
    assert sources == expected and len(captions) == 40
    for source, size in (("a", 10), ("b", 30)):
        times = {number for caption, number in captions.items() if caption[0] == source}
        assert times <= {expected[source] // size, -(-expected[source] // size)}


def test_repeated_pairs_do_not_meet_in_a_batch(folder):
    train = load(folder / "a.csv", folder / "b.jsonl", source_weights=[1, 1])
    captions = np.array([caption for captions in train["caption"] for caption in captions])
    sampler = make_train_sampler(train, batch_size=6, seed=0, no_duplicate_captions=True)
    batches = sampler.order(0)[: len(sampler)].reshape(-1, 6)
    assert len(batches) == 10 and all(len(set(captions[batch])) == 6 for batch in batches)


def test_a_limit_takes_the_first_of_each(folder):
    sources, captions = counts(load(folder / "a.csv", folder / "b.jsonl", source_weights=[1, 3], max_train_samples=8))
    assert sources == {"a": 2, "b": 6} and {"a 0", "a 1", "b 0", "b 5"} <= set(captions)


def test_a_table_of_sources(folder):
    sub = folder / "sub"
    sub.mkdir()
    (sub / "c.csv").write_text("picture;a;b\n../red.png;x;c 0\n")
    (sub / "sources.yaml").write_text(
        "- {source: ../a.csv, weight: 1}\n- {source: ../b.jsonl, weight: 3}\n"
        "- {source: c.csv, weight: 0.5, caption_column: b}\n"
    )
    sources, _ = counts(load(sub / "sources.yaml"))
    assert sources == {"a": 10, "b": 30, "c": 5}


def test_shards_are_mixed_with_shards(folder):
    write_shard(folder / "a.tar", samples(range(4)))
    write_shard(folder / "b.tar", samples(range(10, 12)))
    (folder / "sources.yaml").write_text("- {source: [a.tar], weight: 1}\n- {source: b.tar, weight: 1}\n")
    train = load(folder / "sources.yaml")
    assert len(train) == 8 and Counter(train["shard"]) == {0: 4, 1: 4}


def test_shards_and_tables_are_mixed_as_the_refusal_says(folder):
    write_shard(folder / "b.tar", samples(range(4)))
    with pytest.raises(
        ValueError, match=r"Unpack the shards .* into a folder .* `- \{source: FOLDER, weight: 0\.3\}`"
    ):
        DataArguments(train_file=[str(folder / "a.csv")], train_shards=[str(folder / "b.tar")])
    with tarfile.open(folder / "b.tar") as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (folder / "sources.yaml").write_text("- {source: a.csv, weight: 1}\n- {source: unpacked, weight: 1}\n")
    sources, _ = counts(load(folder / "sources.yaml"))
    assert sources["a"] == 10 and sum(sources.values()) == 20


def test_several_validation_files_are_one_set(folder):
    a, b = str(folder / "a.csv"), str(folder / "b.jsonl")
    _, validation = load_captioned_datasets(DataArguments(train_file=[a], validation_file=[a, b]))
    sources, captions = counts(validation)
    assert sources == {"a": 10, "b": 30} and set(captions.values()) == {1}
    _, validation = load_captioned_datasets(DataArguments(train_file=[a], validation_file=[b], max_eval_samples=3))
    assert len(validation) == 3


def test_an_evaluation_repeats_no_pair_whatever_the_weights(folder):
    (folder / "sources.yaml").write_text("- {source: a.csv, weight: 5}\n- {source: b.jsonl, weight: 1}\n")
    sources = str(folder / "sources.yaml")
    train, validation = load_captioned_datasets(DataArguments(train_file=[sources], validation_file=[sources]))
    assert (len(train), len(validation)) == (180, 40)


@pytest.mark.parametrize(
    "content, message",
    [
        ("a.csv: 1\n", "must be a list of rows with a `source` each"),
        ("- {source: a.csv, wieght: 1}\n", "row 1 has 'wieght', which is none of source, weight"),
        ("- {source: a.csv, weight: 1}\n- {source: b.jsonl}\n", "row 2 has no weight"),
        ("- {source: a.csv, weight: 0}\n- {source: b.jsonl, weight: 1}\n", "above 0, got 0 1"),
        ("- {source: a.csv, weight: x}\n- {source: b.jsonl, weight: 1}\n", "above 0, got x 1"),
        ("- {source: gone.csv}\n", r"gone\.csv does not exist"),
        ("- [", "cannot be read"),
        ("- source: a.csv\n  caption_templates: ['{} in {place}']\n", r"\.yaml, row 1: A prompt .* has \{place\}\.$"),
        (
            "- {source: a.csv}\n- {source: a.tar}\n",
            r"a\.tar are shards and .*a\.csv is none.* Unpack the shards .*sources\.yaml",
        ),
    ],
)
def test_a_wrong_table_of_sources_is_refused(folder, content, message):
    write_shard(folder / "a.tar", samples(range(4)))
    (folder / "sources.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder / "sources.yaml")


@pytest.mark.parametrize(
    "files, weights, message",
    [
        (["a.csv"], [1.0], "has 1, and there are 1"),
        (["a.csv", "b.csv"], [1.0], "has 2, and there are 1"),
        (["a.csv", "b.csv"], [1.0, -1.0], "above 0"),
        (["a.csv", "b.csv"], [1.0, float("nan")], "above 0"),
    ],
)
def test_wrong_weights_are_refused(files, weights, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(train_file=files, source_weights=weights)


def test_one_file_is_a_name():
    assert DataArguments(train_file=["a.csv"]).train_file == "a.csv"
