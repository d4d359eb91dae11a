"""What a card says, offline: its metadata by huggingface_hub's own classes, and its numbers by the files they are of."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, eval_result_entries_to_yaml, parse_eval_result_entries

from modeling_cyclip import CyCLIPModel
from modeling_cyclip.commands.card import main
from modeling_cyclip.hub.card import (
    count_parameters,
    edited_card,
    make_card,
    merge_results,
    read_comparison,
    write_card,
    write_model_card,
)
from modeling_cyclip.hub.publish import left_out, published_files
from modeling_cyclip.hub.results import eval_result_entries, eval_results, read_results
from tests.hub.conftest import write_results


def test_metadata(run_folder, results):
    evaluation = read_results(results, [str(run_folder)])
    card = ModelCard(str(make_card(run_folder, "tester/vit", evaluation.figures)))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "zero-shot-image-classification" and data["library_name"] == "transformers"
    assert data["license"] == "mit" and data["widget"][0]["candidate_labels"]
    accuracy, gap = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_type, accuracy.dataset_split) == (
        "accuracy", 0.625, "clip-benchmark/wds_tiny", "test",
    )  # fmt: skip
    assert (gap.task_type, gap.metric_type, gap.metric_value) == ("image-feature-extraction", "modality_gap", 0.515625)
    assert card.data.model_name == "vit"


def test_says_what_the_run_was(run_folder, results):
    text = make_card(run_folder, "tester/vit", read_results(results, [str(run_folder)]).figures).text
    for part in ("| 0.25 | 0.25 |", "1,234 image-caption pairs", "2 processes, each on NVIDIA H100", "torch 2.13.0",
                 "Commit `0123456789abcdef", "cyclic_warmup_ratio: 0.5", "plots/training_curve.png", "goel2022cyclip",
                 "| wds_tiny [test] | zero_shot | top1 | 62.50 % | 56.25 to 68.75 | 1,024 |", "is contested", "`mit`",
                 "## Intended use", "## Limitations"):  # fmt: skip
        assert part in text
    assert (run_folder / "plots" / "training_curve.png").stat().st_size > 10_000


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
    assert "## Compared" not in make_card(run_folder, "tester/vit").text


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not the output folder of cyclip compare"):
        read_comparison(tmp_path)


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
    accuracy, gap = eval_results(figures)
    accuracy.metric_value, gap.dataset_split = 0.75, "validation"
    merge_results(card, [accuracy, gap], "unused")
    values = {(result.metric_type, result.dataset_split, result.metric_value) for result in card.data.eval_results}
    assert values == {
        ("accuracy", "test", 0.75), ("modality_gap", "test", 0.515625), ("modality_gap", "validation", 0.515625),
    }  # fmt: skip
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
    assert card.data.license == "cc-by-4.0" and len(card.data.eval_results) == 2
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
