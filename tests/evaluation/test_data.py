import io
import tarfile
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Image, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from modeling_cyclip.data.images import load_image
from modeling_cyclip.evaluation import benchmarks
from modeling_cyclip.evaluation.arguments import DataArguments
from modeling_cyclip.evaluation.benchmarks import REGISTRY, Benchmark, open_benchmark, read_class_names, read_templates
from modeling_cyclip.evaluation.content import image_digests, shared_images
from modeling_cyclip.evaluation.embeddings import images_fingerprint
from modeling_cyclip.evaluation.evaluation_set import GENERAL_TEMPLATES, load_data, load_evaluation_set
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
    assert named.labels.tolist() == [0, 1] * 7 and named.class_names == ["green", "lemon yellow"]


@pytest.mark.parametrize("column", ["label", "name"])
def test_excluded_classes_are_no_candidates_whatever_the_column(data_folder, column):
    everything = load(data_folder, label_column=column, class_splits=["test", "train"])
    some = load(data_folder, label_column=column, class_splits=["test", "train"], exclude="group=cold")
    assert len(everything.class_names) == 4
    assert sorted(name.split()[0] for name in some.class_names) in (["lemon", "red"], ["red", "yellow"])
    named = {number: some.class_names[label] for number, label in enumerate(some.labels.tolist())}
    assert named[0].startswith("red") and len(named) == 14


def test_excluded_values_have_underscores_spaces_and_commas(data_folder, tmp_path, caplog):
    assert len(load(data_folder, exclude="label=lemon yellow").dataset) == 21
    assert len(load(data_folder, exclude="label=lemon_yellow").dataset) == 21
    assert caplog.messages == []
    load(data_folder, exclude="name=purple paint")
    assert "no row of column 'name' has the value 'purple paint'" in caplog.text
    labelled(tmp_path, Value("string"), ["tench, Tinca", "tench", "hen"])
    assert load(tmp_path, exclude='label="tench, Tinca",hen').class_names == ["tench"]


def labelled(folder, feature, labels):
    rows = Dataset.from_dict({"image": [coloured_image("red")] * len(labels), "label": labels})
    rows = rows.cast_column("image", Image()).cast_column("label", feature)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")


def test_classes_that_never_had_an_image_stay_candidates(tmp_path):
    labelled(tmp_path, ClassLabel(names=["a", "b", "c", "d"]), [0, 1, 1])
    assert load(tmp_path, exclude="label=b").class_names == ["a", "c", "d"]


@pytest.mark.parametrize("feature", [Value("string"), ClassLabel(names=["cat_fish", "dog", "cat fish"])])
def test_classes_of_one_name_are_one_class_with_a_note(tmp_path, feature, caplog):
    labelled(tmp_path, feature, ["cat_fish", "cat fish", "dog"])
    data = load(tmp_path)
    assert data.class_names == ["cat fish", "dog"] and data.labels.tolist() == [0, 0, 1]
    if isinstance(feature, ClassLabel):
        (note,) = data.notes
        assert note == "2 classes have the name 'cat fish' and are scored as one." and note in caplog.text


def test_every_class_with_several_superclasses_is_named_with_counts(tmp_path):
    rows = {
        "image": [coloured_image("red")] * 7,
        "label": ["cat", "cat", "cat", "dog", "dog", "cow", "tench, Tinca"],
        "group": ["pet", "pet", "wild", "pet", "farm", "farm", "wild"],
    }
    rows["label"].append("tench, Tinca")
    rows["group"].append("pet")
    rows["image"].append(coloured_image("blue"))
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    data = load(tmp_path, coarse_column="group")
    assert data.superclasses is None and len(data.labels) == 8
    assert data.problems["superclasses"] == (
        "3 classes have rows of several superclasses in column 'group': 'cat' (pet 2, wild 1); 'dog' (pet 1, farm 1); "
        "'tench, Tinca' (wild 1, pet 1). Mend the rows, or leave these classes out by --exclude "
        "'label=cat,dog,\"tench, Tinca\"'."
    )
    rest = load(tmp_path, coarse_column="group", exclude='label=cat,dog,"tench, Tinca"')
    assert rest.class_names == ["cow"] and rest.superclasses.tolist() == [0] and not rest.problems


# What a file of templates may hold, and how its lines are understood.
TEMPLATES = {
    "a photo of a {}.": "a photo of a {}.",
    "\ufeffa {c}.": "a {}.",
    "  a {classname} \r\n\r\n": "a {}",
    "a %s on a table": "a {} on a table",
    "'a photo of a {}.',": "a photo of a {}.",
    '"it\'s a {}"': "it's a {}",
    "lambda c: f'a photo of a {c}.',": "a photo of a {}.",
    "'{}' in quotes and 'more'": "'{}' in quotes and 'more'",
}
REFUSED_TEMPLATES = {
    "a photo": "line 1: .*'a photo' has none",
    "{}\na photo in {place}": "line 2: A prompt template needs",
    "a {} in {place}": "line 1: .*no other field: 'a {} in {place}' has {place}",
    "lambda c: 'a ' + c": "line 1: .*is Python that is not understood",
    "lambda c: f'a {c} in {place}'": "line 1: .*is Python that is not understood",
    "imagenet_templates = [": "line 1: A prompt template needs",
    " \n": "holds no templates",
}


@pytest.mark.parametrize(("text", "template"), TEMPLATES.items())
def test_templates_are_understood(tmp_path, text, template):
    (tmp_path / "templates.txt").write_text(text, newline="")
    assert read_templates(tmp_path / "templates.txt") == [template]


@pytest.mark.parametrize(("text", "message"), REFUSED_TEMPLATES.items())
def test_templates_that_are_refused(tmp_path, text, message):
    (tmp_path / "templates.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_templates(tmp_path / "templates.txt")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfcat\r\n dog  \r\n\r\n", ["cat", "dog"]),
        (b"\tcat \n\nhot  dog", "line 2 is empty"),
        ("cat\ndog".encode("utf-16"), "is in UTF-16"),
        ("caf\xe9".encode("latin-1"), "is not in UTF-8"),
    ],
)
def test_class_names_in_files(tmp_path, content, names):
    (tmp_path / "classnames.txt").write_bytes(content)
    if isinstance(names, list):
        assert read_class_names(tmp_path / "classnames.txt") == names
    else:
        with pytest.raises(ValueError, match=names):
            read_class_names(tmp_path / "classnames.txt")


def test_fewer_names_than_labels_and_labels_that_are_no_classes(tmp_path):
    labelled(tmp_path, Value("int64"), [0, 2, 1])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"Row 1 of the split test has label 2, but there are only 2 class names"):
        load(tmp_path)
    labelled(tmp_path, Value("float32"), [0.0, 2.0])
    with pytest.raises(ValueError, match="Column 'label' holds float32, not class labels"):
        load(tmp_path)


def test_members_of_shards_may_be_in_upper_case(tmp_path):
    write_shard(tmp_path / "test" / "0.tar", {"a.PNG": png(), "a.CLS": b"1", "b.PNG": png(), "b.CLS": b"0"})
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert load(tmp_path).labels.tolist() == [1, 0]


def test_members_of_a_shard_may_be_in_either_case(tmp_path):
    samples = {}
    for row, (image, label) in enumerate([("png", "cls"), ("PNG", "CLS"), ("png", "CLS"), ("PNG", "cls")] * 2):
        samples |= {f"Row{row}.{image}": png(), f"Row{row}.{label}": str(row % 2).encode()}
    write_shard(tmp_path / "test" / "0.tar", samples)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    data = load(tmp_path)
    assert data.labels.tolist() == [0, 1] * 4 and all(row["image"]["bytes"] for row in data.dataset)


@pytest.mark.parametrize("found", ["val", "validation"])
@pytest.mark.parametrize("asked", ["val", "validation"])
def test_the_validation_split_by_either_name(tmp_path, found, asked):
    write_shard(tmp_path / "shards" / found / "0.tar", {"a.png": png(), "a.txt": b"a cat"})
    assert len(load(tmp_path / "shards", split=asked).dataset) == 1
    for name in ("cat", "dog"):
        (tmp_path / "folder" / found / name).mkdir(parents=True)
        coloured_image("red").save(tmp_path / "folder" / found / name / "0.png")
    assert load(tmp_path / "folder", split=asked).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("\ufeffimage, label\r\n0.png, 1\r\n", [1]),
        ("image,label\n0.png,dog\n0.png,cat\n", [1, 0]),
        ("image,label\n0.png,dog\n0.png,cow\n", "row 2: 'cow' is neither a number nor one of the 2 names"),
    ],
)
def test_official_labels_with_a_mark_or_names(tmp_path, table, labels):
    coloured_image("red").save(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text(table, newline="")
    (tmp_path / "classes.py").write_text(CLASSES_PY.replace(', lambda c: "x"', ""))
    if isinstance(labels, list):
        assert load(tmp_path).labels.tolist() == labels
    else:
        with pytest.raises(ValueError, match=labels):
            load(tmp_path)


def test_a_table_is_opened_as_in_training(tmp_path, monkeypatch):
    coloured_image("red").save(tmp_path / "a b.png")
    # A mark, a synonym for each column, a caption that is a list, and numbers for labels.
    table = '\ufefffilepath,title,label\n"a b.png","[""a cat"", ""a dog""]",1\na b.png,NA,0\n'
    (tmp_path / "pairs.csv").write_text(table)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    data = load_data(DataArguments(str(tmp_path / "pairs.csv")), None)
    assert data.name == str(tmp_path / "pairs.csv")
    assert data.captions == [["a cat", "a dog"], ["NA"]]
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [1, 0]
    assert load_image(data.dataset[0]["image"]).size == (16, 16)
    with pytest.raises(ValueError, match="is one file, without splits"):
        load_data(DataArguments(str(tmp_path / "pairs.csv"), split="train"), None)
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(ValueError, match=r"Column 'label' has labels without names.*classnames\.txt"):
        load_data(DataArguments(str(tmp_path / "pairs.csv")), None)


def folder_of_pairs(folder):
    coloured_image("red").save(folder / "0.png")
    (folder / "0.txt").write_text("a cat")


def saved_folder(folder):
    rows = Dataset.from_dict({"image": [coloured_image("red")], "caption": ["a cat"]}).cast_column("image", Image())
    rows.save_to_disk(folder)


def folder_of_table_and_images(folder):
    coloured_image("red").save(folder / "0.png")
    (folder / "pairs.csv").write_text("image,caption\n0.png,a cat\n")


def folder_of_bytes(folder):
    Dataset.from_dict({"image": [png()], "caption": ["a cat"]}).to_parquet(folder / "train.parquet")


def shards(folder):
    write_shard(folder / "train" / "0.tar", {"a.png": png(), "a.txt": b"a cat"})
    return str(folder / "train" / "*.tar")


@pytest.mark.parametrize(
    "layout", [folder_of_pairs, saved_folder, folder_of_table_and_images, folder_of_bytes, shards]
)
def test_what_training_opens(tmp_path, layout):
    source = layout(tmp_path) or str(tmp_path)
    data = load_data(DataArguments(source, split=None if source.endswith(".tar") else "train"), None)
    assert data.captions == [["a cat"]]
    assert load_image(data.dataset[0]["image"]).size == (16, 16)
    assert len(image_digests(data.dataset)) == 1 and shared_images(data.dataset, data.dataset) == (1, 1)
    assert images_fingerprint(data.dataset)


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
    assert data.templates == ["a photo of a {}.", "art of a {}."]
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
        ({"exclude": "group"}, "takes column=value"),
        ({"exclude": "group=hot"}, "no value 'hot', but warm, cold"),
        ({"exclude": "group=warm,cold"}, "has no rows after --exclude"),
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
    with pytest.raises(ValueError, match=r"labels without names.*classnames\.txt in the folder .*--label_column"):
        load(tmp_path)


def test_rows_without_caption_and_two_image_columns(tmp_path):
    rows = Dataset.from_dict({"image": [coloured_image("red")], "caption": [" "]}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert load(tmp_path, caption_column="caption").problems == {
        "captions": "Row 0 has no caption in column 'caption': fill it in, or remove the row."
    }
    assert load(tmp_path).captions is None
    (tmp_path / "two").mkdir()
    rows = rows.rename_column("image", "first").add_column("mask", [png()]).cast_column("mask", Image())
    rows.to_parquet(tmp_path / "two" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="found first, mask"):
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

    for attempt in (Benchmark("clip-benchmark/wds_none").templates, Benchmark("clip-benchmark/wds_none").load):
        with pytest.raises(ValueError, match=r"cannot be fetched from the Hub: .*offline mode"):
            attempt("test")
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="0b" * 20))
    monkeypatch.setattr(benchmarks, "hf_hub_download", fail)
    with pytest.raises(ValueError, match="cannot be fetched from the Hub: no connection"):
        Benchmark("clip-benchmark/wds_none").templates("test")


def test_commit_of_a_set_on_the_hub(tmp_path):
    labelled(tmp_path, ClassLabel(names=["a"]), [0])
    files = {"test": str(tmp_path / "test-00000-of-00001.parquet")}
    # What load_dataset makes of a Hub id, and of a folder.
    for told, expected in (("0a" * 20, "0a" * 20), ("0a" * 32, None)):
        builder = Parquet(cache_dir=str(tmp_path / "cache"), dataset_name="name", hash=told, data_files=files)
        builder.download_and_prepare()
        dataset = builder.as_dataset("test")
        assert Benchmark("user/name").commit(dataset.select([0]).select_columns("label")) == expected
    assert Benchmark("user/name").commit(Dataset.from_dict({"a": [1]})) is None


def test_shards_of_the_hub_are_read_at_one_commit(monkeypatch, tmp_path):
    asked, info = [], SimpleNamespace(sha="0b" * 20)
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: asked.append(name) or info)
    benchmark, opened, dataset = Benchmark("user/wds_name"), {}, Dataset.from_dict({"a": [1]})
    opener = SimpleNamespace(download_and_prepare=lambda: None, as_dataset=lambda split: dataset)
    monkeypatch.setattr(benchmarks, "_Shards", lambda data_files, **_: opened.update(data_files) or opener)
    for split in ("train", "test"):
        assert benchmark.load(split) == (dataset, None)
    assert opened == {split: f"hf://datasets/user/wds_name@{'0b' * 20}/{split}/*.tar" for split in ("train", "test")}
    assert benchmark.commit(dataset) == "0b" * 20 and asked == ["user/wds_name"]
    at_commit = {"repo_type": "dataset", "revision": "0b" * 20}
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text("{}")
    monkeypatch.setattr(benchmarks, "hf_hub_download", lambda *names, **options: path if options == at_commit else "")
    assert benchmark.templates("test") == ["{}"]


def test_class_label_of_one_column_is_found(tmp_path):
    rows = Dataset.from_dict({"image": [coloured_image("red")] * 2, "fine": [1, 0], "size": [4, 5]})
    rows = rows.cast_column("image", Image()).cast_column("fine", ClassLabel(names=["a", "b"]))
    rows = rows.cast_column("size", Value("int32"))
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert torch.equal(load(tmp_path).labels, torch.tensor([1, 0]))
