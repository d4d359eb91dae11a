"""What a card says, offline: its metadata by huggingface_hub's own classes, and its numbers by the files they are of."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Image
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries

from modeling_cyclip import CyCLIPModel, CyCLIPTrainingArguments
from modeling_cyclip.commands.card import main
from modeling_cyclip.evaluation.report import in_markdown
from modeling_cyclip.hub.card import (
    count_parameters,
    draw_training_curve,
    edited_card,
    headlines,
    make_card,
    merge_results,
    read_comparison,
    write_card,
    write_model_card,
)
from modeling_cyclip.hub.publish import left_out, published_files
from modeling_cyclip.hub.results import Figure, eval_result_entries, eval_results, read_results
from modeling_cyclip.run_record import run_record
from tests.conftest import coloured_image
from tests.hub.conftest import LOGS, write_results


def test_metadata(run_folder, results):
    evaluation = read_results(results, [str(run_folder)])
    card = ModelCard(str(make_card(run_folder, "tester/vit", evaluation.figures)))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "zero-shot-image-classification" and data["library_name"] == "transformers"
    assert data["license"] == "mit" and data["widget"][0]["candidate_labels"]
    (accuracy,) = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_type, accuracy.dataset_split) == (
        "accuracy", 0.625, "clip-benchmark/wds_tiny", "test",
    )  # fmt: skip
    assert card.data.model_name == "vit"


def test_says_what_the_run_was(run_folder, results):
    text = make_card(run_folder, "tester/vit", read_results(results, [str(run_folder)]).figures).text
    for part in ("| 0.25 | 0.25 |", "1,234 image-caption pairs", "2 processes, each on NVIDIA H100", "torch 2.13.0",
                 "Commit `0123456789abcdef", "cyclic_warmup_ratio: 0.5", "plots/training_curve.png", "goel2022cyclip",
                 "| wds_tiny [test] | zero_shot | top1 | 62.50 % |  | 56.25 to 68.75 | 1,024 |", "is contested", "`mit`",
                 "## Intended use", "## Limitations"):  # fmt: skip
        assert part in text
    assert (run_folder / "plots" / "training_curve.png").stat().st_size > 10_000


def test_says_when_the_cyclic_terms_began(run_folder):
    run = json.loads((run_folder / "run.json").read_text())
    for start, warmup in ((0.5, 0.25), (0.0, 0.0)):
        run["training"].update(cyclic_start_ratio=start, cyclic_warmup_ratio=warmup)
        (run_folder / "run.json").write_text(json.dumps(run))
        text = " ".join(make_card(run_folder, "tester/vit").text.split())
        told = "for 0.5 of it the two terms were left out, and over the next 0.25 their weights rose from zero."
        assert (told in text) == (start > 0)


def test_says_that_half_of_the_contrastive_loss_was_in_modal_where_it_was(run_folder):
    assert "was in-modal" not in make_card(run_folder, "tester/vit").text
    run = json.loads((run_folder / "run.json").read_text())
    run["data"]["inmodal_contrastive"] = True
    (run_folder / "run.json").write_text(json.dumps(run))
    assert "Half of the contrastive loss was in-modal" in make_card(run_folder, "tester/vit").text


def test_reports_the_comparison_that_the_model_is_from(run_folder, comparison):
    text = make_card(run_folder, "tester/vit", comparison=read_comparison(comparison)).text
    assert "## Compared with CLIP" in text
    assert "| colours, zero_shot top1 | CyCLIP | 62.50 | -12.50 | -25.00 to -6.25 |  | lower |" in text
    assert "lower |\n\n> CyCLIP, seed 0: All images have nearly the same embedding.\n\n## Licence" in text
    assert "## Compared" not in make_card(run_folder, "tester/vit").text


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not the output folder of cyclip compare"):
        read_comparison(tmp_path)


# How the training went


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_counts_the_seconds_of_all_parts_of_a_training_that_was_resumed(run_folder):
    ends = [{"step": 4, "train_runtime": 100.0}, {"step": 5, "loss": 1.0, "train_seconds": 150.0}]
    change(run_folder / "trainer_state.json", log_history=[*LOGS, *ends])
    assert "**Length.** 6 steps, 1.5 epochs, 150.0 seconds." in make_card(run_folder, "tester/vit").text
    change(run_folder / "trainer_state.json", log_history=[*LOGS, *ends, {"step": 6, "train_runtime": 200.0}])
    assert "**Length.** 6 steps, 1.5 epochs, 200.0 seconds." in make_card(run_folder, "tester/vit").text


@pytest.mark.parametrize(
    "model, base, sentence",
    [
        ({"model_size": "nano"}, None, "It was trained from random weights."),
        ({"model_name_or_path": "user/b"}, "user/b",
         "It was fine-tuned from [user/b](https://huggingface.co/user/b), all of its weights."),
        ({"model_name_or_path": "my_clip"}, None, "It was fine-tuned from the checkpoint my_clip, all of its weights."),
        ({"model_name_or_path": "user/b", "freeze_vision": True}, "user/b", ", with the vision tower frozen."),
        ({"model_name_or_path": "user/b", "lora_rank": 8, "lora_towers": ["vision"], "freeze_text": True}, "user/b",
         ", with LoRA adapters of rank 8 in the attention layers of the vision tower, which are merged"),
        ({}, "user/b", "It was fine-tuned from [user/b](https://huggingface.co/user/b)."),
    ],
)  # fmt: skip
def test_says_in_a_sentence_what_the_training_began_from(run_folder, model, base, sentence):
    change(run_folder / "run.json", model=model, base_model=base)
    assert sentence in make_card(run_folder, "tester/vit").text


def test_counts_images_and_captions_apart(run_folder):
    change(run_folder / "run.json", training_pairs=1200, training_images=1200, training_captions=6000)
    assert "1,200 images with 6,000 captions." in make_card(run_folder, "tester/vit").text
    change(run_folder / "run.json", training_pairs=1200, training_images=1200, training_captions=1200)
    assert "1,200 image-caption pairs." in make_card(run_folder, "tester/vit").text


def test_calls_the_recall_in_a_batch_so(run_folder):
    text = make_card(run_folder, "tester/vit").text
    assert "| image-to-text recall@1 in the last training batch | 0.75 |" in text
    assert "| validation loss | 1.312 |" in text


def test_curve_belongs_to_the_training_that_it_shows(run_folder, monkeypatch):
    path = run_folder / "plots" / "training_curve.png"
    assert draw_training_curve(LOGS, path)
    drawn = path.read_bytes()
    monkeypatch.setattr("modeling_cyclip.hub.card.is_matplotlib_available", lambda: False)
    assert draw_training_curve(LOGS, path) and path.read_bytes() == drawn
    assert not draw_training_curve([{**log, "loss": 2.0} for log in LOGS], path) and not path.exists()


# What was measured


def test_states_no_number_that_no_file_holds(run_folder, results):
    evaluation = read_results(results, [str(run_folder)])
    text = make_card(run_folder, "tester/vit", evaluation.figures).text
    # Code has its own test; links are titles and identifiers; 95 % is the interval's level.
    text = re.sub(r"```.*?```|\[[^\]]*\]\([^)]*\)|95 % interval", "", text, flags=re.DOTALL)

    held = {f"{count_parameters(run_folder):,}"}
    files = ("config.json", "trainer_state.json", "eval_results.json", "run.json")
    for content in [json.loads((run_folder / name).read_text()) for name in files] + [evaluation.table]:
        for number in re.findall(r"(?<![\w@])-?\d[\d.]*(?:e-?\d+)?", json.dumps(content)):
            number = number.rstrip(".")
            held.add(number)
            if number.count(".") < 2:
                value = float(number)
                held |= {f"{value:.4g}", f"{value:,.0f}", f"{value:,.1f}", f"{100 * value:.2f}"}
    stated = [number.rstrip(".,") for number in re.findall(r"(?<![\wλ@`.])\d[\d.,]*", text)]
    assert len(stated) > 20
    assert [number for number in stated if number not in held] == []
    assert "0.875" not in text and "87.50" not in text  # another model's


def figure(name: str, task: str = "zero_shot", **values) -> Figure:
    shown = {"value": 0.5, "low": 0.25, "high": 0.75, "items": 64, "split": "test"} | values
    return Figure(dataset_name="tiny", dataset="tiny", dataset_id=None, task=task, name=name, is_main=False, **shown)


def test_chance_stands_beside_each_accuracy(run_folder):
    figures = [figure("top1", chance=0.1), figure("top10", chance=1.0), figure("k=1", "consistency")]
    figures += [figure("text_to_image_recall@1", "retrieval", chance=1 / 28)]
    text = make_card(run_folder, "tester/vit", figures).text
    for task, name, chance in (
        ("zero_shot", "top1", "10.00 %"), ("retrieval", "text_to_image_recall@1", "3.57 %"), ("consistency", "k=1", ""),
    ):  # fmt: skip
        assert f"| tiny [test] | {task} | {name} | 50.00 % | {chance} | 25.00 to 75.00 | 64 |" in text
    assert "top10" not in text  # of ten classes


def test_metadata_hold_the_main_figures_and_do_not_drown_the_text(run_folder):
    names = {"zero_shot": ["top1", "top3"], "consistency": ["k=1", "k=3"], "linear_probe": ["official accuracy"],
             "geometry": [f"figure {number}" for number in range(20)]}  # fmt: skip
    figures = [
        figure(name, task, split=f"split{part}")
        for part in range(4)
        for task, found in names.items()
        for name in found
    ]
    card = make_card(run_folder, "tester/vit", figures)
    assert {(result.metric_name) for result in card.data.eval_results} == {
        "zero_shot: top1", "consistency: k=1", "linear_probe: official accuracy",
    }  # fmt: skip
    assert len(str(card.data).splitlines()) < 160
    folded = card.text.partition("<summary>All other figures</summary>")[2]
    assert "figure 19" in folded and "k=3" in folded and "official accuracy" not in folded


@pytest.mark.parametrize(
    "name, shown",
    [
        ("wds_tiny", "wds_tiny"),
        ("a|b\nc", r"a\|b c"),
        ("_it_ *is* `code` <script>", r"\_it\_ \*is\* \`code\` \<script\>"),
        ("x](http://elsewhere)", r"x\](http://elsewhere)"),
    ],
)
def test_names_stand_in_the_text_as_they_are(run_folder, name, shown):
    assert in_markdown(name) == shown
    change(run_folder / "run.json", data={"train_file": name})
    one = replace(figure(name, items=None), dataset_name=name)
    text = make_card(run_folder, "tester/vit", [one]).text
    assert f"| {shown} [test] | zero_shot | {shown} | 0.5 |  |  |  |" in text and f"**Data.** {shown}, 1,234" in text


def test_without_results_or_training_it_claims_neither(run_folder):
    for name in ("trainer_state.json", "eval_results.json", "run.json"):
        (run_folder / name).unlink()
    card = make_card(run_folder, "tester/vit")
    assert "model-index" not in card.data.to_dict() and "license" not in card.data.to_dict()
    assert "does not say with which objective it was trained" in card.text
    assert (
        "nothing of the training" in card.text and "there were no results" in card.text and "No licence" in card.text
    )


@pytest.mark.parametrize(
    "weights, objective", [((0, 0), "[CLIP]"), ((0.25, 0), "[I-CyCLIP]"), ((0, 0.1), "[C-CyCLIP]")]
)
def test_names_the_objective(run_folder, weights, objective):
    config = json.loads((run_folder / "config.json").read_text())
    config |= dict(zip(("inmodal_cyclic_weight", "crossmodal_cyclic_weight"), weights, strict=True))
    (run_folder / "config.json").write_text(json.dumps(config))
    assert f"objective of {objective}" in make_card(run_folder, "tester/vit").text


def test_evaluation_results_in_the_preferred_form(run_folder, results):
    files = eval_result_entries(read_results(results, [str(run_folder)]).figures, {})
    assert list(files) == [".eval_results/clip-benchmark--wds_tiny.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(yaml.dump(eval_result_entries_to_yaml(*files.values()))))
    assert (entry.dataset_id, entry.value) == ("clip-benchmark/wds_tiny", 0.625)
    assert entry.task_id == "zero-shot-image-classification" and "1024 test items" in entry.notes


def test_sets_that_are_not_on_the_hub_have_no_entry_and_no_folder(run_folder, tmp_path):
    path = write_results(tmp_path / "results.json", str(run_folder), 0.5, data=f"{tmp_path}/private/cifar10 [val]")
    evaluation = read_results(path, [str(run_folder)])
    assert eval_result_entries(evaluation.figures, {}) == {}
    assert eval_results(evaluation.figures)[0].dataset_type == "cifar10"
    ((name, content),) = evaluation.files("tester/vit").items()
    assert re.fullmatch(r"evaluation/cifar10-[0-9a-f]{8}/results\.json", name)
    published = json.loads(content)
    assert published["data"] == "cifar10 [val]" and list(published["results"]) == ["tester/vit"]


def test_figures_of_shifts_name_no_local_folders(results, run_folder):
    content = json.loads(results.read_text())
    shift = {f"{name} [test] top1": {"value": 0.5} for name in ("/home/me/sketches", "somebody/on_the_hub")}
    content["results"][str(run_folder)]["shift"] = shift | {"/home/me/sketches [test]: drop (points)": {"value": 2.5}}
    results.write_text(json.dumps(content))
    evaluation = read_results(results, [str(run_folder)])
    assert [figure.name for figure in evaluation.figures if figure.task == "shift"] == [
        "sketches [test] top1", "somebody/on_the_hub [test] top1", "sketches [test]: drop (points)",
    ]  # fmt: skip
    assert b"/home/me" not in b"".join(evaluation.files("tester/vit").values())


def test_plots_are_published_with_the_model_that_they_show(results, run_folder):
    assert [path.rpartition("/")[2] for path in read_results(results, [str(run_folder)]).files("tester/vit")] == [
        "results.json", "confusion.png",
    ]  # fmt: skip
    (name,) = read_results(results, ["other/model"]).files("other/model")
    assert name.endswith("/results.json")


def test_results_of_another_model_are_refused(results, run_folder, tmp_path):
    with pytest.raises(ValueError, match=r"none of somewhere/else.*--results_of"):
        read_results(results, ["somewhere/else"])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json is not a results\.json"):
        read_results(tmp_path / "other.json", [str(run_folder)])


def test_merging_keeps_what_it_does_not_measure_anew(run_folder, results):
    figures = read_results(results, [str(run_folder)]).figures
    card = make_card(run_folder, "tester/vit", figures)
    text, others = card.text, {key: value for key, value in card.data.to_dict().items() if key != "model-index"}
    (again,), (other,) = (eval_results(headlines(figures)) for _ in range(2))
    again.metric_value, other.dataset_split = 0.75, "validation"
    merge_results(card, [again, other], "unused")
    values = {(result.metric_type, result.dataset_split, result.metric_value) for result in card.data.eval_results}
    assert values == {("accuracy", "test", 0.75), ("accuracy", "validation", 0.625)}
    card = ModelCard(str(card))
    assert card.text == text and card.data.model_name == "vit"
    assert {key: value for key, value in card.data.to_dict().items() if key != "model-index"} == others


def test_knows_an_edited_card(run_folder):
    write_card(run_folder, make_card(run_folder, "tester/vit"))
    assert edited_card(run_folder) is None
    path = run_folder / "README.md"
    path.write_text(path.read_text() + "\nMy words.\n")
    assert edited_card(run_folder).text.endswith("My words.\n")
    write_model_card(run_folder, "tester/vit")
    assert edited_card(run_folder) is None and "My words." in (run_folder / "README.edited.md").read_text()


def test_command_line(run_folder, results, capsys):
    main([str(run_folder), "--model_id", "tester/vit", "--results", str(results), "--license", "cc-by-4.0"])
    card = ModelCard.load(run_folder / "README.md")
    assert card.data.license == "cc-by-4.0" and len(card.data.eval_results) == 1
    with pytest.raises(SystemExit, match=r"error: .* holds no checkpoint"):
        main([str(results.parent)])


def test_only_named_files_are_published(run_folder):
    names = {path.relative_to(run_folder).as_posix() for path in published_files(run_folder)}
    assert names == {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        "run.json", "trainer_state.json", "eval_results.json", "runs/today/events.out.tfevents.1.host",
    }  # fmt: skip
    assert left_out(run_folder) == ["checkpoint-6/", "embeddings/", "optimizer.pt", "training_args.bin"]


@pytest.mark.parametrize("name", ["trainer_state.json", "run.json"])
def test_names_a_file_that_is_cut_off(run_folder, name):
    (run_folder / name).write_text((run_folder / name).read_text()[:-5])
    with pytest.raises(ValueError, match=rf"vit/{name} is no whole JSON file"):
        make_card(run_folder, "tester/vit")


def test_a_card_of_the_folder_one_is_in_has_its_name(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    main(["."])
    assert "\n# vit\n" in (run_folder / "README.md").read_text()


def test_counts_parameters(run_folder, resnet_folder):
    for folder in (run_folder, resnet_folder):
        assert count_parameters(folder) == CyCLIPModel.from_pretrained(folder).num_parameters()
    assert "ResNet with 1 + 1 + 1 + 1 blocks" in make_card(resnet_folder, "tester/resnet").text


# What a run knows of its pairs


def test_a_run_counts_the_images_and_the_captions_of_its_pairs(pairs, model, tmp_path):
    args = CyCLIPTrainingArguments(tmp_path, use_cpu=True)
    coloured_image("red").save(tmp_path / "red.png")
    coloured_image("blue").save(tmp_path / "blue.png")
    files = [str(tmp_path / name) for name in ("red.png", "blue.png", "red.png")]
    rows = Dataset.from_dict({"image": files, "caption": ["red", "blue", "crimson"]})

    def counted(dataset):
        record = run_record(args, model, dataset)
        return record.get("training_pairs"), record.get("training_images"), record.get("training_captions")

    assert counted(pairs) == (32, 32, 64)  # two captions a row
    assert counted(rows.cast_column("image", Image(decode=False))) == (3, 2, 3)  # two rows of one file
    assert counted(rows.cast_column("image", Image()).select([0, 2])) == (2, 1, 2)
    assert counted(rows) == (3, 3, 3)
    assert counted([{"image": files[0], "caption": "red"}]) == (1, None, None)
