import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Image, load_dataset

from modeling_cyclip.commands.evaluate import main
from modeling_cyclip.evaluation.embeddings import class_embeddings, image_embeddings
from modeling_cyclip.evaluation.protocols import PROTOCOLS
from modeling_cyclip.evaluation.report import markdown_table
from modeling_cyclip.evaluation.zero_shot import zero_shot
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


def test_all_tasks_that_the_data_allow(run, checkpoint, tmp_path):
    results = run(*EVERYTHING, "--tasks", "all", "--center", "--plots")["results"][checkpoint]
    plain = {"zero_shot", "shift", "consistency", "fine_coarse", "retrieval", "linear_probe", "geometry"}
    plain |= {"image_retrieval", "clustering"}
    assert plain == PROTOCOLS.keys() - {"winoground"}
    assert results.keys() == plain | {f"{task}, centred" for task in plain - {"linear_probe"}}
    assert results["geometry, centred"]["modality_gap"]["value"] < results["geometry"]["modality_gap"]["value"]
    assert results["consistency"]["k=30"]["items"] == 28
    assert results["retrieval"]["text_to_image_recall@1"]["items"] == 56

    report = (tmp_path / "out" / "results.md").read_text()
    pictures = sorted((tmp_path / "out" / "plots").iterdir())
    assert [picture.suffix for picture in pictures] == [".png", ".svg"] * 6
    assert all(f"(plots/{picture.name})" in report and picture.stat().st_size > 1000 for picture in pictures)


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
    rows = Dataset.from_dict({"image": [coloured_image("red")], "label": [0]}).cast_column("image", Image())
    rows = rows.cast_column("label", ClassLabel(names=["red", "blue"]))
    for split in ("train", "test"):
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
        (["--label_column", "label", "--tasks", "consistency"], "needs reference images (--train_split)"),
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
    table = markdown_table({"a": {"x": {"value": 0.5, "low": 0.25, "high": 0.75, "items": 1200}, "y": {"value": 2.0}}})
    assert table.splitlines()[2:] == ["| a | x | 50.00 % | 25.00 to 75.00 | 1,200 |", "| a | y | 2.0000 | | |"]
