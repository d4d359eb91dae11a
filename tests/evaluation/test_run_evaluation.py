import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Image, concatenate_datasets, load_dataset

from modeling_cyclip.commands.evaluate import main
from modeling_cyclip.evaluation.benchmarks import Benchmark
from modeling_cyclip.evaluation.embeddings import class_embeddings, image_embeddings
from modeling_cyclip.evaluation.progress import progress_bar
from modeling_cyclip.evaluation.protocols import PROTOCOLS, Protocol
from modeling_cyclip.evaluation.report import markdown_table
from modeling_cyclip.evaluation.zero_shot import zero_shot
from modeling_cyclip.hub.card import make_card
from modeling_cyclip.hub.results import eval_results, read_results
from tests.conftest import coloured_image


ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(checkpoint, data_folder, tmp_path):
    """Runs main on the tiny checkpoint and data and gives results.json."""

    def run(*arguments, dataset=data_folder, output="out"):
        output_dir = tmp_path / output
        fixed = ["--model_name_or_path", checkpoint, "--dataset", str(dataset), "--output_dir", str(output_dir)]
        main([*fixed, *arguments])
        return json.loads((output_dir / "results.json").read_text())

    return run


EVERYTHING = [
    "--label_column",
    "label",
    "--coarse_column",
    "group",
    "--train_split",
    "train",
    "--shift_splits",
    "faded",
]


def test_zero_shot_is_the_default(run, checkpoint, data_folder, capsys):
    results = run("--label_column", "label")
    assert results["data"] == f"{data_folder} [test]"
    (figures,) = results["results"][checkpoint].values()
    assert figures.keys() == {"top1", "top3", "mean_per_class"}
    top1 = figures["top1"]
    assert top1["items"] == 28
    assert 0 <= top1["low"] <= top1["value"] <= top1["high"] <= 1
    assert f"| zero_shot | top1 | {100 * top1['value']:.2f} % |" in capsys.readouterr().out


def test_all_that_may_take_long_says_what_it_is(run, capsys):
    run(*EVERYTHING, "--tasks", "all")
    told = {line.partition(":")[0] for line in re.split(r"[\r\n]", capsys.readouterr().err)}
    assert {f"images of colours0 [{split}]" for split in ("test", "train", "faded")} <= told
    assert {"class prompts of colours0 [test]", "captions of colours0 [test]"} <= told
    assert {"logistic regression", "k-means"} <= told


def test_bars_in_a_file_are_written_every_five_seconds(monkeypatch):
    assert progress_bar(range(2), "a").mininterval == 5
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert progress_bar(range(2), "a").mininterval < 1


def test_all_tasks_that_the_data_allow(run, checkpoint, tmp_path):
    results = run(*EVERYTHING, "--tasks", "all", "--center", "--plots")["results"][checkpoint]
    plain = {"zero_shot", "shift", "consistency", "fine_coarse", "retrieval", "linear_probe", "geometry"}
    plain |= {"image_retrieval", "clustering"}
    assert plain == PROTOCOLS.keys() - {"winoground"}
    assert results.keys() == plain | {f"{task}, centred" for task in plain - {"linear_probe"}}
    assert results["geometry, centred"]["modality_gap"]["value"] < results["geometry"]["modality_gap"]["value"]
    assert results["consistency"]["k=30"]["items"] == 28
    assert results["retrieval"]["text_to_image_recall@1"].items() >= {"items": 56, "chance": 1 / 28}.items()
    assert results["fine_coarse, centred"]["fine_top1"]["chance"] == 0.5
    assert {figure.get("chance") for name, figure in results["shift"].items() if "mean_per_class" in name} == {0.25}
    assert "chance" not in results["consistency"]["k=1"]

    card = make_card(checkpoint, "tester/vit", read_results(tmp_path / "out" / "results.json", [checkpoint]).figures)
    assert "| image_to_text_recall@1 | " in card.text and " % | 3.57 % | " in card.text
    report = (tmp_path / "out" / "results.md").read_text()
    pictures = sorted((tmp_path / "out" / "plots").iterdir())
    assert [picture.suffix for picture in pictures] == [".png", ".svg"] * 6
    assert all(f"(plots/{picture.name})" in report and picture.stat().st_size > 1000 for picture in pictures)


def test_results_say_what_was_measured_and_how(run, checkpoint, data_folder, tmp_path):
    (tmp_path / "short.txt").write_text("{}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "short.txt").write_text("the {}\n")
    base = ["--label_column", "name", "--seed", "3"]
    plain = run(*base)
    some = run(*base, "--exclude", "group=cold", "--templates", str(tmp_path / "short.txt"))
    others = run(*base, "--exclude", "group=cold", "--templates", str(tmp_path / "other" / "short.txt"))
    assert plain["setting"].keys() == {"label_column", "classes", "seed"}
    assert some["setting"].keys() == {"label_column", "classes", "seed", "exclude", "templates"}
    assert some["setting"]["exclude"] == "group=cold" and some["setting"]["templates"].startswith("short ")
    assert {name for name in some["setting"] if some["setting"][name] != others["setting"][name]} == {"templates"}
    assert some["content"]["images"]["number"] == 14 and plain["content"]["images"]["number"] == 28
    assert some["content"]["images"] == others["content"]["images"] != plain["content"]["images"]
    assert some["content"]["templates"] != others["content"]["templates"]
    assert some["checkpoints"].keys() == {checkpoint} and len(some["checkpoints"][checkpoint]) == 16
    assert {"torch", "transformers"} <= some["environment"].keys() and some["seed"] == 3
    assert some["command"].startswith(
        f"cyclip evaluate --dataset {data_folder} --label_column name --exclude group=cold"
    )
    report = (tmp_path / "out" / "results.md").read_text()
    assert "- setting: " in report and "exclude group=cold" in report and "- command: `cyclip evaluate" in report


def test_two_subsets_of_a_set_are_two_measurements(run, checkpoint, tmp_path):
    def read(*arguments):
        run(*arguments, "--label_column", "label", "--tasks", "zero_shot", "retrieval")
        return read_results(tmp_path / "out" / "results.json", [checkpoint])

    whole, some, again = (
        read(),
        read("--exclude", "group=cold"),
        read("--exclude", "group=cold", "--train_split", "train"),
    )
    labels = [{figure.dataset_name for figure in one.figures} for one in (whole, some)]
    assert all("exclude group=cold" in label for label in labels[1]) and not labels[0] & labels[1]
    rows = [{one.metric_name: one for one in eval_results(evaluation.figures)} for evaluation in (whole, some, again)]
    assert rows[1].keys() == rows[2].keys() == rows[0].keys() - {"zero_shot: top3"}
    for name in rows[1]:
        assert not rows[0][name].is_equal_except_value(rows[1][name])
        assert rows[0][name].unique_identifier != rows[1][name].unique_identifier
        # A split that plays no part in a figure makes no other measurement of it.
        assert rows[1][name].is_equal_except_value(rows[2][name])
    assert rows[0]["retrieval: image_to_text_recall@1"].dataset_config is None


def test_published_results_name_no_local_folder(run, checkpoint, tmp_path):
    (tmp_path / "short.txt").write_text("{}\n")
    arguments = [
        *EVERYTHING,
        "--tasks",
        "all",
        "--templates",
        str(tmp_path / "short.txt"),
        "--compare_to",
        checkpoint + "/",
    ]
    run(*arguments)
    files = read_results(tmp_path / "out" / "results.json", [checkpoint]).files("somebody/model")
    published = b"".join(files.values()).decode()
    assert str(tmp_path.parent) not in published and "/tmp" not in published
    assert json.loads(published)["command"].startswith("cyclip evaluate --dataset colours0 ")


def test_plots_belong_to_the_run_that_drew_them(run, checkpoint, tmp_path):
    assert run("--label_column", "label", "--plots")["plots"][0].startswith("plots/")
    assert read_results(tmp_path / "out" / "results.json", [checkpoint]).plots
    assert run("--label_column", "label", "--exclude", "group=cold")["plots"] == []
    assert read_results(tmp_path / "out" / "results.json", [checkpoint]).plots == []


@pytest.mark.parametrize("split", ["test", "all_of_it"])
def test_reference_images_that_are_test_images_are_refused(run, data_folder, tmp_path, split):
    copy = tmp_path / "copy"
    shutil.copytree(data_folder, copy)
    # Under another name, in another order and among others.
    test, train = (
        Dataset.from_parquet(f"{data_folder}/data/{name}-00000-of-00001.parquet") for name in ("test", "train")
    )
    both = concatenate_datasets([train, test.shuffle(seed=0)])
    both.to_parquet(copy / "data" / "all_of_it-00000-of-00001.parquet")
    with pytest.raises(
        SystemExit, match=r"error: 28 of 28 test images .* are among the reference images .*--cross_validate 5"
    ):
        run("--label_column", "label", "--train_split", split, "--tasks", "consistency", dataset=copy)
    # What needs no reference images is measured.
    assert run("--label_column", "label", "--train_split", split, dataset=copy)["failed"] == {}


def test_a_few_shared_images_are_told_beside_the_figures(monkeypatch, run, checkpoint, tmp_path, caplog):
    arguments = ["--label_column", "label", "--train_split", "train", "--tasks", "consistency", "zero_shot"]
    overlap = "test images among the reference images"
    results = run(*arguments)
    assert results[overlap] == {"found": 0, "looked for": 28}
    assert "shared" not in results["results"][checkpoint]["consistency"]["k=1"]
    monkeypatch.setattr("modeling_cyclip.evaluation.protocols.shared_images", lambda test, train: (4, 10_000))
    results = run(*arguments, "--center")
    assert results[overlap] == {"found": 4, "looked for": 10_000} and "4 of 10,000 test images" in caplog.text
    figures = results["results"][checkpoint]
    assert figures["consistency, centred"]["k=1"]["shared"] == figures["consistency"]["k=1"]["shared"] == 0.0004
    assert "shared" not in figures["zero_shot"]["top1"]
    assert "| 28 (0.04 % are reference images, too) |" in (tmp_path / "out" / "results.md").read_text()
    card = make_card(checkpoint, "tester/vit", read_results(tmp_path / "out" / "results.json", [checkpoint]).figures)
    assert "| 28 (0.04 % are reference images, too) |" in card.text
    # What needs no reference images is not compared with them.
    assert run(*arguments[:-2], "zero_shot")[overlap] == {}


def test_commits_of_sets_on_the_hub_are_recorded(run, checkpoint, tmp_path, monkeypatch):
    assert run(*EVERYTHING)["revisions"] == {}
    monkeypatch.setattr(Benchmark, "commit", lambda self, dataset: f"{len(dataset):040}")
    revisions = run(*EVERYTHING, "--tasks", "consistency", "shift")["revisions"]
    assert [int(commit) for commit in revisions.values()] == [28, 40, 9]
    published = json.loads(*read_results(tmp_path / "out" / "results.json", [checkpoint]).files("tester/vit").values())
    assert list(published["revisions"]) == ["test", "reference", "colours0 [faded]"]


def test_cross_validation_takes_reference_images_from_other_folds(run, checkpoint, data_folder):
    results = run("--label_column", "label", "--cross_validate", "4", "--tasks", "all")
    figures = results["results"][checkpoint]
    assert figures["consistency"]["k=1"]["items"] == figures["linear_probe"]["official accuracy"]["items"] == 28
    assert "k=30" not in figures["consistency"]
    assert results["setting"]["cross_validate"] == "4"
    with pytest.raises(SystemExit, match="take one of them"):
        run("--label_column", "label", "--cross_validate", "4", "--train_split", "train")
    with pytest.raises(SystemExit, match="at least 2 folds"):
        run("--label_column", "label", "--cross_validate", "1")


def test_each_task_fails_by_itself(run, checkpoint, data_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data_folder, copy)
    path = str(copy / "data" / "test-00000-of-00001.parquet")
    rows = Dataset.from_parquet(path)
    # One of seven red images is said to be cold.
    rows = rows.remove_columns("group").add_column(
        "group", ["cold", *rows.features["group"].int2str(rows["group"][1:])]
    )
    rows.to_parquet(path)
    for other in ("train", "faded"):
        (copy / "data" / f"{other}-00000-of-00001.parquet").unlink()
    arguments = ["--label_column", "label", "--coarse_column", "group", "--tasks"]
    with pytest.raises(
        SystemExit, match=r"1 of the tasks failed.*fine_coarse: 1 class has rows .*'red' \(warm 6, cold 1\)"
    ):
        run(*arguments, "all", dataset=copy)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"zero_shot", "retrieval", "geometry", "clustering"} <= results["results"][checkpoint].keys()
    assert (
        results["failed"].keys() == {"fine_coarse"}
        and "fine_coarse: 1 class" in (tmp_path / "out" / "results.md").read_text()
    )
    with pytest.raises(SystemExit, match="error: 1 class has rows of several superclasses"):
        run(*arguments, "fine_coarse", dataset=copy)
    results = run(*arguments, "all", "--exclude", "label=red", dataset=copy)
    assert results["failed"] == {} and results["results"][checkpoint]["fine_coarse"]["fine_top1"]["items"] == 21


def test_a_task_that_fails_midway_takes_no_other_down(run, checkpoint, monkeypatch, tmp_path):
    def fail(test):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(PROTOCOLS, "geometry", Protocol(fail, ("two_images",)))
    with pytest.raises(
        SystemExit, match=r"1 of the tasks failed, the others are in .*results\.json\. geometry: out of memory$"
    ):
        run("--label_column", "label", "--tasks", "geometry", "zero_shot", "--compare_to", checkpoint + "/")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [list(tables) for tables in results["results"].values()] == [["zero_shot"]] * 3
    with pytest.raises(SystemExit, match="error: geometry: out of memory"):
        run("--label_column", "label", "--tasks", "geometry", output="none")
    assert not (tmp_path / "none" / "results.json").exists()


def test_broken_images_are_left_out_and_counted_beside_each_figure(run, checkpoint, tmp_path):
    folder = tmp_path / "pictures"
    for split, size in (("test", 6), ("train", 12)):
        for name in ("red", "blue"):
            (folder / split / name).mkdir(parents=True)
            for level in range(size):
                coloured_image(name, level + (10 if split == "train" else 0)).save(
                    folder / split / name / f"{level}.png"
                )
    whole = run("--train_split", "train", "--tasks", "all", dataset=folder)
    assert "left_out" not in whole["results"][checkpoint]["zero_shot"]["top1"]
    for path in ("test/blue/2.png", "train/red/3.png", "train/red/4.png"):
        (folder / path).write_text(f"no image: {path}")
    results = run("--train_split", "train", "--tasks", "all", "--center", "--plots", dataset=folder)
    figures = results["results"][checkpoint]
    assert figures["zero_shot"]["top1"].items() >= {"items": 11, "left_out": 1}.items()
    assert figures["consistency, centred"]["k=1"].items() >= {"items": 11, "left_out": 3}.items()
    assert results["broken images left out"] == {"test": 1, "reference": 2}
    assert "| 11 (1 images could not be opened) |" in (tmp_path / "out" / "results.md").read_text()
    (figure,) = [
        figure
        for figure in read_results(tmp_path / "out" / "results.json", [checkpoint]).figures
        if (figure.task, figure.name) == ("zero_shot", "top1")
    ]
    assert (figure.items, figure.left_out) == (11, 1)


def test_comparison_is_paired(run, checkpoint, model, processor, tmp_path):
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.randn_like(model.visual_projection.weight))
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    tables = run(*EVERYTHING, "--tasks", "zero_shot", "geometry", "--compare_to", other)["results"]
    assert list(tables) == [checkpoint, other, f"{checkpoint} minus {other}"]
    first, second, difference = tables.values()
    for task, figure in (("zero_shot", "top1"), ("geometry", "modality_gap")):
        expected = first[task][figure]["value"] - second[task][figure]["value"]
        assert difference[task][figure]["value"] == pytest.approx(expected, abs=1e-6)
    assert first["zero_shot"]["top1"]["chance"] == 0.25 and "chance" not in difference["zero_shot"]["top1"]
    assert difference["zero_shot"]["top1"]["low"] <= difference["zero_shot"]["top1"]["value"]
    measured, _, difference = (tmp_path / "out" / "results.md").read_text().split("\n## ")[1:]
    assert " % |" in measured and " points |" in difference and "0 % |" not in difference


def test_same_checkpoint_differs_from_itself_by_nothing(run, checkpoint):
    *_, difference = run("--label_column", "label", "--compare_to", checkpoint + "/")["results"].values()
    assert difference["zero_shot"]["top1"] == {"value": 0.0, "low": 0.0, "high": 0.0, "items": 28}


def test_shift_has_a_line_of_baseline_points(run, checkpoint, tmp_path):
    (tmp_path / "points.csv").write_text("10,3\n20,15\n30,27\n")
    arguments = [*EVERYTHING, "--tasks", "shift", "--baseline_points", str(tmp_path / "points.csv")]
    figures = {
        name.split("] ")[-1].split("]: ")[-1]: figure["value"]
        for name, figure in run(*arguments)["results"][checkpoint]["shift"].items()
    }
    base, shifted = figures["top1 without the shift, same classes"], figures["top1"]
    assert figures["drop (points)"] == pytest.approx(100 * (base - shifted))
    assert figures["effective robustness (points)"] == pytest.approx(100 * shifted - (1.2 * 100 * base - 9))


def test_shifted_set_may_be_a_dataset_of_its_own(run, checkpoint, data_folder, shifted_folder):
    tables = run(*EVERYTHING, "--shift_datasets", shifted_folder, "--tasks", "shift", "fine_coarse")["results"]
    shift = tables[checkpoint]["shift"]
    assert shift[f"{shifted_folder} [test] top1"] == shift[f"{data_folder} [faded] top1"]


def test_string_labels_with_templates_and_excluded_rows(run, checkpoint, model, processor, data_folder, tmp_path):
    (tmp_path / "templates.txt").write_text("{}\na {} picture\n\n")
    arguments = ["--label_column", "name", "--shift_splits", "faded", "--exclude", "name=red paint"]
    tables = run(*arguments, "--templates", str(tmp_path / "templates.txt"), "--tasks", "zero_shot", "shift")[
        "results"
    ]
    dataset = load_dataset(str(data_folder), split="test")
    rows = [row for row in dataset if row["name"] != "red paint"]
    names = sorted({row["name"] for row in rows})
    classes = class_embeddings(model, processor, names, ["{}", "a {} picture"])
    images = image_embeddings(model, processor, [row["img"] for row in rows])
    expected = zero_shot(images, classes, torch.tensor([names.index(row["name"]) for row in rows]))
    for name, measure in expected.items():
        assert tables[checkpoint]["zero_shot"][name]["value"] == measure.value
    assert tables[checkpoint]["zero_shot"]["top1"]["items"] == len(rows) == 21


def test_all_tasks_leave_out_what_few_images_do_not_allow(run, checkpoint, tmp_path):
    for split, level in (("train", 1), ("test", 0)):
        rows = Dataset.from_dict({"image": [coloured_image("red", level)], "label": [0]}).cast_column("image", Image())
        rows = rows.cast_column("label", ClassLabel(names=["red", "blue"]))
        rows.to_parquet(tmp_path / "one" / f"{split}-00000-of-00001.parquet")
    results = run("--tasks", "all", "--train_split", "train", dataset=tmp_path / "one")["results"][checkpoint]
    assert results.keys() == {"zero_shot", "consistency"} and results["consistency"].keys() == {"k=1"}


def test_image_retrieval_is_left_out_where_each_image_is_a_class(run, checkpoint):
    results = run("--label_column", "code", "--tasks", "all")["results"][checkpoint]
    assert "zero_shot" in results
    assert not {"image_retrieval", "clustering"} & results.keys()


def test_winoground(run, checkpoint, tmp_path):
    columns = {
        f"image_{i}": [coloured_image(c) for c in colours] for i, colours in enumerate((["red"] * 3, ["blue"] * 3))
    }
    columns |= {"caption_0": ["red blue"] * 3, "caption_1": ["blue red"] * 3}
    rows = Dataset.from_dict(columns).cast_column("image_0", Image()).cast_column("image_1", Image())
    rows.to_parquet(tmp_path / "winoground" / "test-00000-of-00001.parquet")
    results = run("--tasks", "all", dataset=tmp_path / "winoground")["results"][checkpoint]
    assert results["winoground"]["group_score"]["items"] == 3
    assert "zero_shot" not in results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "zero_shots"], "no task zero_shots; there are zero_shot, shift"),
        (
            ["--label_column", "label", "--tasks", "consistency"],
            "needs reference images (--train_split, or --cross_validate)",
        ),
        (["--label_column", "label", "--tasks", "shift"], "needs shifted sets (--shift_datasets, --shift_splits)"),
        (["--label_column", "label", "--tasks", "fine_coarse"], "needs superclasses (--coarse_column)"),
        (["--label_column", "code", "--tasks", "clustering"], "needs at least two images a class"),
        (["--label_column", "label", "--tasks", "winoground"], "needs the columns image_0"),
        (["--label_column", "label", "--image_column", "group"], "holds ClassLabel, not images"),
        (["--label_column", "label", "--baseline_points", "x"], "are of one shifted set, but there are 0"),
        (["--label_column", "label", "--dtype", "fp8"], "fp32, bf16"),
    ],
)
def test_faults_end_the_run_in_one_line(run, arguments, message):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert str(error.value).startswith("error: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_argument_ends_the_run_in_one_line(run, capsys):
    with pytest.raises(SystemExit):
        run("--use_cpu")
    assert "error: there is no argument --use_cpu" in capsys.readouterr().err.splitlines()[-1]


def test_two_processes_give_identical_figures(run, checkpoint, data_folder, tmp_path):
    # 28 rows in batches of 5: six batches, the last one short, three a process.
    arguments = [*EVERYTHING, "--tasks", "all", "--batch_size", "5"]
    alone = run(*arguments)["results"]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        str(ROOT / "evaluation" / "run_evaluation.py"),
    ]
    command += ["--model_name_or_path", checkpoint, "--dataset", data_folder, "--output_dir", str(tmp_path / "two")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *arguments], check=True, env=environment, timeout=300, capture_output=True)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["results"] == alone


def test_table_shows_shares_in_percent_and_other_figures_as_they_are():
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "items": 1200}
    table = markdown_table({"a": {"x": share | {"chance": 0.1}, "z": share, "y": {"value": 2.0}}})
    assert table.splitlines()[2:] == [
        "| a | x | 50.00 % | 10.00 % | 25.00 to 75.00 | 1,200 |",
        "| a | z | 50.00 % | | 25.00 to 75.00 | 1,200 |",
        "| a | y | 2.0000 | | | |",
    ]


def test_names_stand_in_the_table_as_they_are():
    (row,) = markdown_table({"shift": {"a|b `c` [test] top1": {"value": 2.0}}}).splitlines()[2:]
    assert row == r"| shift | a\|b \`c\` [test] top1 | 2.0000 | | | |"
