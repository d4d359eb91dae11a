"""Writes the card of a model: its README.md, from what its folder and results of evaluation hold.

cyclip card OUTPUT_DIR --model_id user/name --results results/results.json
"""

import json
import logging
import math
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError, safe_open
from transformers.utils import is_matplotlib_available

from ..comparison.report import answer_table
from ..package_files import package_file
from ..run_record import RUN_RECORD
from .results import Figure, eval_results


logger = logging.getLogger(__name__)

TEMPLATE = package_file("model_cards/template.md")
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

# Of the curve: what each panel shows, and what it calls it.
PARTS = {
    "loss": "loss",
    "contrastive_loss": "contrastive",
    "inmodal_cyclic_loss": "in-modal, unweighted",
    "crossmodal_cyclic_loss": "cross-modal, unweighted",
    "inmodal_contrastive_loss": "in-modal contrastive",
}
RECALLS = {"image_to_text_recall@1": "image to text", "text_to_image_recall@1": "text to image"}
COLOURS = ("black", "#2a6fbb", "#c0622d", "#2e8b57", "#8a4fa3")


def make_card(
    output_dir: str | Path,
    model_id: str,
    figures: Iterable[Figure] = (),
    license: str | None = None,
    comparison: dict[str, Any] | None = None,
    *,
    language: str | list[str] | None = None,
    tags: str | list[str] | None = None,
    base_model: str | None = None,
    datasets: str | list[str] | None = None,
) -> ModelCard:
    r"""
    The card of a checkpoint. It states no number that no file holds: the folder's config.json, weights,
    trainer_state.json, eval_results.json and run.json, or a results.json. What none of them knows is left out. Draws the
    training curve into the folder.

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
        language (`str` or `list[str]`, *optional*):
            Languages of the captions, as the Hub names them.
        tags (`str` or `list[str]`, *optional*):
            Tags beside the card's own.
        base_model (`str`, *optional*):
            The checkpoint on the Hub that was trained on. Default: the one that run.json names.
        datasets (`str` or `list[str]`, *optional*):
            The datasets on the Hub that it was trained on. Default: the one that run.json names.

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
    base_model = base_model or run.get("base_model")
    datasets = datasets or run.get("dataset")
    logs = state.get("log_history", [])
    name = Path(model_id).resolve().name

    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=base_model,
        datasets=datasets,
        tags=["clip", "cyclip", "contrastive-learning", *_listed(tags)],
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
        data=_describe_data(run, _listed(datasets)),
        base_model=base_model,
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


def _describe_data(run: dict[str, Any], datasets: list[str]) -> str:
    """The training set, as far as it is known: its names and its size."""
    told = next((value for name, value in run.get("data", {}).items() if name in DATA), None)
    known = [f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets]
    known = known or [f"`{name}`" for name in _listed(told)]
    if run.get("training_pairs") is not None:
        known.append(f"{run['training_pairs']:,} image-caption pairs")
    return ", ".join(known)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


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
    What `cyclip compare` found, without names of local folders: for the card, and to be published with it.

    Raises:
        `ValueError`: no report in that folder.
    """
    if folder is None:
        return None
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return {name: results[name] for name in COMPARED}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not the output folder of cyclip compare: {error!r}") from error


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


def write_model_card(
    output_dir: str | Path,
    model_id: str,
    *,
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    base_model: str | None = None,
    datasets: str | list[str] | None = None,
) -> ModelCard:
    """
    Writes the card after a training, as the Trainer asks for it: arguments as of [`make_card`]. One that somebody edited is
    of an older model and put aside.
    """
    if edited_card(output_dir) is not None:
        aside = Path(output_dir, CARD).rename(Path(output_dir, "README.edited.md"))
        logger.warning(f"The model is new, so its card is written anew; the edited one is now {aside}.")
    told = {"language": language, "license": license, "tags": tags, "base_model": base_model, "datasets": datasets}
    card = make_card(output_dir, model_id, **told)
    write_card(output_dir, card)
    return card


def edited_card(output_dir: str | Path) -> ModelCard | None:
    """The folder's card, if somebody has written or edited it."""
    path, written = Path(output_dir, CARD), Path(output_dir, WRITTEN)
    if not path.is_file() or (written.is_file() and written.read_text().strip() == sha256(path)):
        return None
    return ModelCard.load(path)


def weight_files(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("*.safetensors"))


def check_checkpoint(output_dir: Path) -> None:
    r"""
    Raises:
        `ValueError`: no checkpoint there, or one whose weights are cut off or lack a file.
    """
    if (output_dir / "adapter_config.json").is_file():
        raise ValueError(
            f"{output_dir} holds an adapter. Merge it into its model first: cyclip train with --resume_from_checkpoint "
            "--merge_lora, on the run that made it."
        )
    if not (output_dir / "config.json").is_file() or not weight_files(output_dir):
        raise ValueError(f"{output_dir} holds no checkpoint: it needs config.json and weights in safetensors.")
    for index in output_dir.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(name for name in named if not (output_dir / name).is_file()):
            raise ValueError(f"{index} names weights that are not there: {', '.join(missing)}.")
    for path in weight_files(output_dir):
        _read_shapes(path)


def count_parameters(output_dir: Path) -> int:
    """Numbers in the weights; what batch norm counts along is no parameter."""
    return sum(
        math.prod(shape)
        for path in weight_files(output_dir)
        for name, shape in _read_shapes(path).items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def _read_shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged: {error}. Save the model again.") from error


def sha256(content: Path | bytes) -> str:
    """What the Hub tells large files apart by."""
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return sha_fileobj(file).hex()


def draw_training_curve(log_history: list[dict], path: Path) -> bool:
    r"""
    Args:
        log_history (`list[dict]`):
            What the Trainer has logged, as trainer_state.json holds it.
        path (`Path`):
            The PNG to write.

    Returns:
        `bool`: whether there was anything to draw, and matplotlib to draw it.
    """
    steps = [entry for entry in log_history if "loss" in entry]
    if len(steps) < 2:
        return False
    if not is_matplotlib_available():
        logger.warning("The card has no picture of the training: that needs matplotlib.")
        return False
    from matplotlib.figure import Figure as Plot

    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    figure = Plot(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, curves in zip(panels, (PARTS, RECALLS), strict=True):
        for (name, label), colour in zip(curves.items(), COLOURS, strict=False):
            points = [(entry["step"], entry[name]) for entry in steps if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.2)
        if axes is panels[0] and evaluated:
            axes.plot(
                *zip(*evaluated, strict=True), label="loss, validation", color="black", linestyle="--", marker="."
            )
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    panels[0].set(ylabel="loss", yscale="log", title="loss and its parts")
    panels[1].set(ylabel="recall@1", ylim=(0, 1), title="recall@1 within a training batch")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date, so that the same training gives the same file and is not uploaded again.
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    return True
