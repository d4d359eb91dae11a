import io
import tarfile

import pytest
import torch
from datasets import ClassLabel, Dataset, Image, Value
from huggingface_hub.errors import LocalEntryNotFoundError

from modeling_cyclip.data.images import load_image
from modeling_cyclip.evaluation.arguments import DataArguments
from modeling_cyclip.evaluation.benchmarks import REGISTRY, Benchmark, open_benchmark
from modeling_cyclip.evaluation.evaluation_set import GENERAL_TEMPLATES, load_evaluation_set
from tests.conftest import coloured_image


def load(path, split="test", class_splits=(), templates=None, **columns):
    args = DataArguments(str(path), **columns)
    return load_evaluation_set(Benchmark(str(path)), split, args, templates, class_splits)


def png(colour="red"):
    buffer = io.BytesIO()
    coloured_image(colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, samples):
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as shard:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def test_folder_with_class_labels(data_folder):
    data = load(data_folder, label_column="label")
    assert data.name == f"{data_folder} [test]"
    assert data.class_names == ["red", "green", "blue", "lemon yellow"]
    assert data.labels.tolist() == [0, 1, 2, 3] * 7
    assert data.templates == GENERAL_TEMPLATES
    assert data.captions[5] == ["green 1", "shade 1 of green"]
    assert data.dataset.column_names == ["image"]
    assert data.dataset[0]["image"]["bytes"][:4] == b"\x89PNG"
    assert not data.is_winoground


def test_string_label_column_pools_the_classes_of_the_splits(data_folder):
    data = load(data_folder, split="faded", label_column="name", class_splits=["test", "faded"], templates=["{}"])
    assert data.class_names == ["blue paint", "green paint", "red paint", "yellow paint"]
    assert data.labels.tolist() == [2, 1, 0, 3, 2, 1, 0, 3, 2]
    assert data.templates == ["{}"]


def test_superclasses_and_excluded_rows(data_folder):
    data = load(data_folder, label_column="name", coarse_column="group")
    assert data.superclasses.tolist() == [1, 1, 0, 0]
    warm = load(data_folder, label_column="name", exclude="group=cold")
    assert warm.class_names == ["red paint", "yellow paint"]
    assert len(warm.dataset) == len(warm.captions) == 14
    named = load(data_folder, exclude="name=red paint,blue paint")
    assert named.labels.tolist() == [1, 3] * 7


def test_fingerprints_are_the_same_each_time(data_folder):
    first, second = (load(data_folder, exclude="group=cold").dataset._fingerprint for _ in range(2))
    assert first == second != load(data_folder).dataset._fingerprint


def test_image_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for number in range(2):
            coloured_image("red").save(tmp_path / "test" / name / f"{number}.png")
    data = load(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1]


def test_paths_in_a_table_are_relative_to_its_folder(tmp_path, monkeypatch):
    coloured_image("red").save(tmp_path / "red.png")
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "test.csv").write_text(f"picture,caption\n../red.png,a\n{tmp_path}/red.png,b\n")
    monkeypatch.chdir(tmp_path)
    first, second = (load(name, image_column="picture").dataset for name in ("tables", str(folder)))
    assert [load_image(image).size for image in first["image"]] == [(16, 16)] * 2
    assert first._fingerprint == second._fingerprint


def test_clip_benchmark_layout(tmp_path):
    samples = {}
    for number in range(3):
        samples |= {f"s{number}.png": png(), f"s{number}.cls": str(2 - number).encode()}
    write_shard(tmp_path / "test" / "0.tar", samples)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    (tmp_path / "classnames.txt").write_text("tabby cat\ndog_like\ncow\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of a {c}.")
    data = load(tmp_path)
    assert data.class_names == ["tabby cat", "dog_like", "cow"]
    assert data.templates == ["a photo of a {c}.", "art of a {c}."]
    assert data.labels.tolist() == [2, 1, 0]


def test_clip_benchmark_captions(tmp_path):
    write_shard(
        tmp_path / "test" / "0.tar", {"a.png": png(), "a.txt": b"a cat\na dog\n", "b.png": png(), "b.txt": b"a cow"}
    )
    data = load(tmp_path)
    assert data.labels is None
    assert data.captions == [["a cat", "a dog"], ["a cow"]]


CLASSES_PY = (
    '{"classes": ["cat", "dog"], "templates": [lambda c: f"a photo of a {c}.", lambda c: f"{c}!", lambda c: "x"]}'
)


@pytest.mark.parametrize("folder", [".", "test"])
def test_official_layout(tmp_path, folder):
    (tmp_path / folder / "images").mkdir(parents=True)
    coloured_image("red").save(tmp_path / folder / "images" / "0.png")
    (tmp_path / folder / "labels.csv").write_text("image,label\nimages/0.png,1\nimages/0.png,0\n")
    (tmp_path / "classes.py").write_text(CLASSES_PY.replace(', lambda c: "x"', ""))
    data = load(tmp_path)
    assert data.labels.tolist() == [1, 0]
    assert data.class_names == ["cat", "dog"]
    assert data.templates == ["a photo of a {}.", "{}!"]
    assert data.dataset[0]["image"]["path"].endswith("0.png")


def test_official_classes_are_parsed_and_never_run(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n0.png,1\n")
    (tmp_path / "classes.py").write_text("__import__('os').mkdir('ran')")
    with pytest.raises(ValueError, match="not a dictionary with the lists classes and templates"):
        load(tmp_path)


def winoground_rows():
    return {
        "image_0": [coloured_image("red"), coloured_image("green")],
        "image_1": [coloured_image("blue"), coloured_image("yellow")],
        "caption_0": ["red blue", "green yellow"],
        "caption_1": ["blue red", "yellow green"],
    }


def test_winoground(tmp_path):
    rows = Dataset.from_dict(winoground_rows()).cast_column("image_0", Image()).cast_column("image_1", Image())
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    data = load(tmp_path)
    assert data.is_winoground
    assert data.captions == [["red blue"], ["blue red"], ["green yellow"], ["yellow green"]]
    assert len(data.dataset) == 4
    assert data.dataset._fingerprint == load(tmp_path).dataset._fingerprint


def test_registry_names_the_papers_benchmarks():
    names = (
        "cifar10 cifar100 imagenet1k imagenetv2 imagenet-sketch imagenet-a imagenet-r caltech101 dtd fgvc-aircraft "
    )
    names += (
        "flowers102 food101 gtsrb oxford-iiit-pets rendered-sst2 stanford-cars stl10 svhn flickr30k mscoco winoground"
    )
    benchmarks = {name: open_benchmark(name) for name in names.split()}
    assert all(benchmark.path != name and benchmark.metric for name, benchmark in benchmarks.items())
    assert benchmarks["imagenetv2"].baseline_line == [1.2, -9.0]
    assert REGISTRY.is_file()
    assert open_benchmark("some/folder") == Benchmark("some/folder")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_column": "picture"}, "no column 'picture'; the data has img, label.*--image_column"),
        ({"image_column": "label"}, "Column 'label' holds ClassLabel, not images"),
        ({"label_column": "species"}, "no column 'species'.*--label_column"),
        ({"caption_column": "label"}, "Column 'label' holds no captions"),
        ({"coarse_column": "genus"}, "no column 'genus'.*--coarse_column"),
        ({"label_column": "group", "coarse_column": "name"}, "Class '.*' has rows of two superclasses"),
        ({"exclude": "group"}, "takes column=value"),
        ({"exclude": "group=hot"}, "no value 'hot', but warm, cold"),
        ({"exclude": "group=warm,cold"}, "has no rows after --exclude"),
        ({"coarse_column": "group", "exclude": "label=red"}, "Class 'red' is empty"),
    ],
)
def test_column_faults(data_folder, columns, message):
    with pytest.raises(ValueError, match=message):
        load(data_folder, **columns)


def test_dataset_faults(tmp_path, data_folder):
    with pytest.raises(ValueError, match=r"split nowhere\) cannot be loaded"):
        load(data_folder, split="nowhere")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(tmp_path / "nothing")
    (tmp_path / "labels.csv").write_text("picture,label\n0.png,1\n")
    with pytest.raises(ValueError, match="columns image and label"):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\n0.png,1\n")
    with pytest.raises(ValueError, match=r"no classes\.py"):
        load(tmp_path)


def test_labels_without_names(tmp_path):
    rows = Dataset.from_dict({"image": [coloured_image("red")], "label": [3]}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="labels without names"):
        load(tmp_path)


def test_rows_without_caption_and_two_image_columns(tmp_path):
    rows = Dataset.from_dict({"image": [coloured_image("red")], "caption": [" "]}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="Row 0 has no caption"):
        load(tmp_path, caption_column="caption")
    assert load(tmp_path).captions is None
    (tmp_path / "two").mkdir()
    rows = rows.add_column("mask", [png()]).cast_column("mask", Image())
    rows.to_parquet(tmp_path / "two" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="found image, mask"):
        load(tmp_path / "two")


@pytest.mark.parametrize("label", [None, -1])
def test_rows_without_label_are_named(tmp_path, label):
    rows = Dataset.from_dict({"image": [coloured_image("red")] * 2, "label": [0, label]}).cast_column("image", Image())
    rows.cast_column("label", ClassLabel(names=["a", "b"])).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="Row 1 of the split test has no label in column 'label'"):
        load(tmp_path)


def test_a_hub_that_cannot_be_reached_gives_no_other_templates(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("modeling_cyclip.evaluation.benchmarks.hf_hub_download", fail)
    with pytest.raises(ValueError, match="cannot be fetched from the Hub: no connection"):
        Benchmark("clip-benchmark/wds_none").templates("test")


def test_class_label_of_one_column_is_found(tmp_path):
    rows = Dataset.from_dict({"image": [coloured_image("red")] * 2, "fine": [1, 0], "size": [4, 5]})
    rows = rows.cast_column("image", Image()).cast_column("fine", ClassLabel(names=["a", "b"]))
    rows = rows.cast_column("size", Value("int32"))
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert torch.equal(load(tmp_path).labels, torch.tensor([1, 0]))
