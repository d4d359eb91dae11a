"""Writes the card of a model: its README.md, from what its folder and results of evaluation hold.

python model_cards/card.py OUTPUT_DIR --model_id user/name --results results/results.json
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from model_cards.checkpoint_folder import RUN_RECORD, check_checkpoint, count_parameters, sha256
from model_cards.results import Evaluation, Figure, eval_results, read_results
from model_cards.training_curve import draw_training_curve
from training.comparison.report import answer_table


logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("template.md")
CARD, CURVE = "README.md", "plots/training_curve.png"

# SHA-256 of the card as last written, to tell whether somebody has edited it since. Never published.
WRITTEN = ".card.sha256"

# A picture and labels that other CLIP models on the Hub show, too.
WIDGET = [
    {
        "src": "https://huggingface.co/datasets/mishig/sample_images/resolve/main/cat-dog-music.png",
        "candidate_labels": "playing music, playing sports",
        "example_title": "Cat & Dog",
    }
]
LOGGED = (
    "loss", "contrastive_loss", "inmodal_contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss",
    "logit_scale", "image_to_text_recall@1", "text_to_image_recall@1",
)  # fmt: skip
COMPARED = ("arms", "seeds", "training_pairs", "hardware", "environment", "commit", "notes", "cost", "results")
DATA = ("dataset_name", "train_file", "train_shards")
EVALUATED = ("eval_loss", "eval_contrastive_loss", "eval_inmodal_cyclic_loss", "eval_crossmodal_cyclic_loss")


def make_card(
    output_dir: str | Path,
    model_id: str,
    figures: Iterable[Figure] = (),
    license: str | None = None,
    comparison: dict[str, Any] | None = None,
) -> ModelCard:
    r"""
    The card of a checkpoint. It states no number that no file holds: the folder's config.json, weights,
    trainer_state.json, eval_results.json and run.json, or a results.json. Draws the training curve into the folder.

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder; at best a training's output folder.
        model_id (`str`):
            The model's name on the Hub, or the folder: what the code samples open.
        figures (`Iterable[Figure]`, *optional*):
            Results of evaluation, from [`read_results`].
        license (`str`, *optional*):
            The Hub's identifier of the weights' licence. Default: what the training was told, or none.
        comparison (`dict`, *optional*):
            Results of a comparison of objectives that this model is from, from [`read_comparison`].

    Returns:
        [`~huggingface_hub.ModelCard`]

    Raises:
        `ValueError`: no checkpoint there, or weights or another of its files that are cut off.
    """
    output_dir, figures = Path(output_dir), list(figures)
    check_checkpoint(output_dir)
    config = _read_json(output_dir / "config.json")
    run, state = _read_json(output_dir / RUN_RECORD), _read_json(output_dir / "trainer_state.json")
    license = license or run.get("model", {}).get("license")
    logs = state.get("log_history", [])
    name = Path(model_id).resolve().name

    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=run.get("base_model"),
        datasets=run.get("dataset"),
        tags=["clip", "cyclip", "contrastive-learning"],
        widget=WIDGET,
        model_name=name if figures else None,
        eval_results=eval_results(figures) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        model_id=model_id,
        license=license,
        figures=figures,
        run=run,
        data_name=_data_name(run),
        state=state,
        runtime=_last(logs, ("train_runtime",)).get("train_runtime"),
        last_log=_last(logs, LOGGED) | _last([_read_json(output_dir / "eval_results.json")], EVALUATED),
        has_curve=draw_training_curve(logs, output_dir / CURVE),
        parameters=f"{count_parameters(output_dir):,}",
        comparison=comparison,
        answer=None if comparison is None else answer_table(comparison),
        **_describe(config),
    )


def _describe(config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_config"], config["text_config"]
    inmodal, crossmodal = (config.get(f"{term}_cyclic_weight", 0) for term in ("inmodal", "crossmodal"))
    names = {(False, False): "CLIP", (False, True): "C-CyCLIP", (True, False): "I-CyCLIP", (True, True): "CyCLIP"}
    is_resnet = config["model_type"] == "cyclip"
    if is_resnet:
        tower = f"CLIP's ResNet with {' + '.join(map(str, vision['depths']))} blocks"
    else:
        layers, width = vision["num_hidden_layers"], vision["hidden_size"]
        tower = f"vision transformer ({layers} layers of width {width}, patches of {vision['patch_size']} pixels)"
    return {
        "architecture": f"A {tower} and a text transformer ({text['num_hidden_layers']} layers of width "
        f"{text['hidden_size']})",
        "is_resnet": is_resnet,
        "objective": names[inmodal != 0, crossmodal != 0],
        "inmodal": inmodal,
        "crossmodal": crossmodal,
        "reference_batch": config.get("cyclic_reference_batch_size"),
        "image_size": vision["image_size"],
        "context_length": text["max_position_embeddings"],
        "projection_dim": config["projection_dim"],
    }


def _data_name(run: dict[str, Any]) -> str:
    value = next((value for name, value in run.get("data", {}).items() if name in DATA), None)
    if value is None:
        return "Not recorded"
    return ", ".join(f"`{name}`" for name in ([value] if isinstance(value, str) else value))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file. Restore it, or remove it: {error}") from error


def _last(logs: list[dict], names: Iterable[str]) -> dict[str, float]:
    """Of each name the last value that was logged."""
    found = {name: value for entry in logs for name, value in entry.items() if name in names}
    return {name: found[name] for name in names if name in found}


def read_comparison(folder: Path | None) -> dict[str, Any] | None:
    r"""
    What training/run_comparison.py found, without names of local folders: for the card, and to be published with it.

    Raises:
        `ValueError`: no report in that folder.
    """
    if folder is None:
        return None
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return {name: results[name] for name in COMPARED}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not the output folder of training/run_comparison.py: {error!r}") from error


def merge_results(card: ModelCard, results: Iterable[EvalResult], model_name: str) -> None:
    r"""
    Puts results into the metadata of a card: they replace those of the same measurement and leave others, all other
    metadata and the text as they are.

    Args:
        card ([`~huggingface_hub.ModelCard`]):
            The card, which is changed.
        results (`Iterable[EvalResult]`):
            The results.
        model_name (`str`):
            The model's name, if the card has none.
    """
    merged = list(card.data.get("eval_results", []))
    for result in results:
        merged = [other for other in merged if not result.is_equal_except_value(other)] + [result]
    if merged:
        card.data.eval_results = merged
        card.data.model_name = card.data.get("model_name") or model_name


def write_card(output_dir: str | Path, card: ModelCard) -> None:
    """Saves a card as the folder's README.md, and how it was then."""
    path = Path(output_dir, CARD)
    card.save(path)
    Path(output_dir, WRITTEN).write_text(sha256(path) + "\n")


def write_model_card(output_dir: str | Path, model_id: str) -> None:
    """The card after a training, as the Trainer asks for it. One that somebody edited is of an older model: put aside."""
    if edited_card(output_dir) is not None:
        aside = Path(output_dir, CARD).rename(Path(output_dir, "README.edited.md"))
        logger.warning(f"The model is new, so its card is written anew; the edited one is now {aside}.")
    write_card(output_dir, make_card(output_dir, model_id))


def edited_card(output_dir: str | Path) -> ModelCard | None:
    """The folder's card, if somebody has written or edited it."""
    path, written = Path(output_dir, CARD), Path(output_dir, WRITTEN)
    if not path.is_file() or (written.is_file() and written.read_text().strip() == sha256(path)):
        return None
    return ModelCard.load(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the card of a model into its folder, over one that is there.")
    parser.add_argument("output_dir", type=Path, help="the checkpoint's folder")
    parser.add_argument("--model_id", help="the model's name on the Hub, for the code samples (default: the folder)")
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    try:
        model_id = args.model_id or str(args.output_dir)
        figures = [
            figure for read in read_all_results(args, [str(args.output_dir), model_id]) for figure in read.figures
        ]
        card = make_card(args.output_dir, model_id, figures, args.license, read_comparison(args.comparison))
        write_card(args.output_dir, card)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(args.output_dir / CARD)


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], help="results.json files of evaluation/run_evaluation.py"
    )
    parser.add_argument(
        "--results_of", help="what this model is called in them (default: its folder or its name on the Hub)"
    )
    parser.add_argument(
        "--comparison", type=Path, help="output folder of training/run_comparison.py, for the card to report"
    )
    parser.add_argument(
        "--license", help="the Hub's identifier of the weights' licence, such as apache-2.0 or cc-by-4.0"
    )


def read_all_results(args: argparse.Namespace, names: list[str]) -> list[Evaluation]:
    """All files of `--results`."""
    return [read_results(path, [args.results_of] if args.results_of else names) for path in args.results]


if __name__ == "__main__":
    main()
