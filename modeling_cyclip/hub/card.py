"""Writes the card of a model, its README.md, from what the model's folder and results of evaluation hold."""

import hashlib
import json
import logging
import math
import shlex
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import is_matplotlib_available

from ..comparison.report import answer
from ..data.tokenizer import CLIP_TYPES, padding_of, positions_of
from ..dual_encoder import embedding_dim
from ..evaluation.report import in_markdown, in_words
from ..package_files import package_file
from ..run_record import RUN_RECORD
from .outgoing import without_folders
from .results import Figure, eval_results


logger = logging.getLogger(__name__)

CARD = "README.md"
CURVE = "plots/training_curve.png"

# This file holds the SHA-256 of the card as it was last written. It shows whether somebody has edited the card since.
WRITTEN = ".card.sha256"

# Other CLIP models on the Hub show this picture and these labels, too.
WIDGET = [
    {
        "src": "https://huggingface.co/datasets/mishig/sample_images/resolve/main/cat-dog-music.png",
        "candidate_labels": "playing music, playing sports",
        "example_title": "Cat & Dog",
    }
]
# The objective, by which of the two cyclic weights, in-modal and cross-modal, are not zero.
OBJECTIVES = {(False, False): "CLIP", (False, True): "C-CyCLIP", (True, False): "I-CyCLIP", (True, True): "CyCLIP"}
# What the card says of the end of the training, by the name in the log.
LOGGED = {
    "loss": "training loss",
    "contrastive_loss": "its contrastive term",
    "inmodal_contrastive_loss": "its in-modal contrastive term",
    "inmodal_cyclic_loss": "its in-modal cyclic term, unweighted",
    "crossmodal_cyclic_loss": "its cross-modal cyclic term, unweighted",
    "logit_scale": "logit scale",
    "image_to_text_recall@1": "image-to-text recall@1 in the last training batch",
    "text_to_image_recall@1": "text-to-image recall@1 in the last training batch",
}
COMPARED = (
    "arms",
    "seeds",
    "training_pairs",
    "hardware",
    "environment",
    "commit",
    "health",
    "notes",
    "cost",
    "results",
)
DATA = ("dataset_name", "train_file", "train_shards")
EVALUATED = {
    "eval_loss": "validation loss",
    "eval_contrastive_loss": "validation: contrastive term",
    "eval_inmodal_cyclic_loss": "validation: in-modal cyclic term, unweighted",
    "eval_crossmodal_cyclic_loss": "validation: cross-modal cyclic term, unweighted",
}

# The figures that stand in a card's metadata and first in its text, by protocol. All others are in `evaluation/`.
HEADLINES = {
    "zero_shot": ("top1",),
    "retrieval": ("image_to_text_recall@1", "text_to_image_recall@1"),
    "winoground": ("group_score",),
    "linear_probe": ("official accuracy",),
    "consistency": ("k=1",),
}

# The two panels of the training curve: what each shows, and its label.
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
    Makes the card of a checkpoint and draws the training curve into its folder. Every number in the card comes from a
    file: the folder's config.json, weights, trainer_state.json, eval_results.json and run.json, or a results.json. The
    card leaves out what no file says.

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder, preferably the output folder of its training.
        model_id (`str`):
            The model's name on the Hub, or its folder. The code samples open it.
        figures (`Iterable[Figure]`, *optional*):
            Results of evaluation, from [`read_results`].
        license (`str`, *optional*):
            The Hub's identifier of the weights' licence. Default: the one that run.json names, if any.
        comparison (`dict`, *optional*):
            Results of the comparison of objectives that this model was trained for, from [`read_comparison`].
        language (`str` or `list[str]`, *optional*):
            The languages of the captions, as the Hub names them.
        tags (`str` or `list[str]`, *optional*):
            Tags to add to the card's own.
        base_model (`str`, *optional*):
            The checkpoint on the Hub that the training started from. Default: the one that run.json names.
        datasets (`str` or `list[str]`, *optional*):
            The datasets on the Hub that hold the training pairs. Default: the one that run.json names.

    Returns:
        [`~huggingface_hub.ModelCard`]

    Raises:
        `ValueError`: the folder holds no checkpoint, or a file of it is cut off.
    """
    output_dir, figures = Path(output_dir), list(figures)
    check_checkpoint(output_dir)
    config, run, state, evaluated = (
        _read_json(output_dir / name)
        for name in ("config.json", RUN_RECORD, "trainer_state.json", "eval_results.json")
    )
    run, comparison = without_folders(run), without_folders(comparison)
    other = None if config["model_type"] in CLIP_TYPES else _describe_other(output_dir, config["architectures"][0])
    # Where the configuration is not ours, the run's record has the terms.
    config |= run.get("cyclic_terms", {})
    datasets, base_model = datasets or run.get("dataset"), base_model or run.get("base_model")
    # Any model finds the right class among the first ten of ten.
    figures = [figure for figure in figures if figure.chance != 1]
    shown = headlines(figures)
    name = Path(model_id).resolve().name
    logs = state.get("log_history", [])
    last_log = {name: value for entry in logs for name, value in entry.items()}
    # Both count all parts of a training that was resumed; without its end there is only the second.
    times = [entry.get("train_runtime", entry.get("train_seconds")) for entry in logs]

    inmodal, crossmodal = (config.get(f"{term}_cyclic_weight", 0) for term in ("inmodal", "crossmodal"))
    data = ModelCardData(
        language=language,
        license=license or run.get("model", {}).get("license"),
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=base_model,
        datasets=datasets,
        tags=["clip" if other is None else config["model_type"], "cyclip", "contrastive-learning", *_listed(tags)],
        widget=WIDGET,
        model_name=name if shown else None,
        eval_results=eval_results(shown) or None,
    )
    # The template also takes the license, from the metadata.
    return ModelCard.from_template(
        data,
        template_path=str(package_file("model_cards/template.md")),
        name=in_markdown(name),
        model_id=model_id,
        quoted_id=shlex.quote(model_id),
        config=config,
        is_resnet=_is_resnet(config),
        other=other,
        architecture=_describe_architecture(config) if other is None else other["architecture"],
        objective=OBJECTIVES[inmodal != 0, crossmodal != 0],
        inmodal=inmodal,
        crossmodal=crossmodal,
        parameters=f"{count_parameters(output_dir):,}",
        run=run,
        state=state,
        start=_describe_start(run, base_model),
        data=_describe_data(run, _listed(datasets)),
        runtime=next((time for time in reversed(times) if time is not None), None),
        has_inmodal_contrastive="inmodal_contrastive_loss" in last_log,
        at_the_end={label: last_log[name] for name, label in LOGGED.items() if name in last_log}
        | {label: evaluated[name] for name, label in EVALUATED.items() if name in evaluated},
        has_curve=draw_training_curve(logs, output_dir / CURVE),
        tables=[table for table in (_rows(shown), _rows([one for one in figures if one not in shown])) if table],
        comparison=comparison,
        answer=None if comparison is None else answer(comparison),
    )


def _describe_other(output_dir: Path, name: str) -> dict[str, Any]:
    """What the card says of a dual encoder that is no CLIP of ours. Its config.json leaves out what is the class's default."""
    config = AutoConfig.from_pretrained(output_dir)
    vision, text = config.vision_config, config.text_config
    return {
        "class": name,
        "architecture": f"A {name} of transformers, with a vision tower of type {vision.model_type} and a text tower of type "
        f"{text.model_type}",
        "tokens": positions_of(config),
        "dim": embedding_dim(config),
        "is_sigmoid": "siglip" in config.model_type,
        "has_pipeline": config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "padding": padding_of(config),
    }


def _is_resnet(config: dict[str, Any]) -> bool:
    return config["model_type"] == "cyclip"


def _describe_architecture(config: dict[str, Any]) -> str:
    vision, text = config["vision_config"], config["text_config"]
    if _is_resnet(config):
        tower = f"CLIP's ResNet with {' + '.join(map(str, vision['depths']))} blocks"
    else:
        layers, width = vision["num_hidden_layers"], vision["hidden_size"]
        tower = f"vision transformer ({layers} layers of width {width}, patches of {vision['patch_size']} pixels)"
    return f"A {tower} and a text transformer ({text['num_hidden_layers']} layers of width {text['hidden_size']})"


def _describe_start(run: dict[str, Any], base_model: str | None) -> str | None:
    """What the training began from and which weights it moved, as far as that is known."""
    model = run.get("model", {})
    if base_model:
        base = f"[{in_markdown(base_model)}](https://huggingface.co/{base_model})"
    elif model.get("model_name_or_path"):
        base = f"the checkpoint {in_markdown(model['model_name_or_path'])}"
    elif model.get("vision_model"):
        names = [in_markdown(model[f"{tower}_model"]) for tower in ("vision", "text")]
        frozen = [tower for tower in ("vision", "text") if model.get(f"freeze_{tower}")]
        kept = f" The {frozen[0]} tower stayed as it was." if frozen else ""
        return f"It was made of the vision tower of {names[0]} and the text tower of {names[1]}, with new projections.{kept}"
    elif model:
        return "It was trained from random weights."
    else:
        return None
    towers = model.get("lora_towers") or ["vision", "text"]
    frozen = [tower for tower in ("vision", "text") if model.get(f"freeze_{tower}")]
    if model.get("lora_rank") is not None:
        how = (
            f", with LoRA adapters of rank {model['lora_rank']} in the attention layers of the {' and the '.join(towers)} tower, "
            "which are merged into the weights; all other weights are the base's"
        )
    elif frozen:
        how = f", with the {' and the '.join(frozen)} tower frozen"
    else:
        how = ", all of its weights" if model else ""
    return f"It was fine-tuned from {base}{how}."


def _describe_data(run: dict[str, Any], datasets: list[str]) -> str:
    """The names of the training set and its size, as far as they are known."""
    known = [f"[{in_markdown(name)}](https://huggingface.co/datasets/{name})" for name in datasets]
    if not known:
        told = next((value for name, value in run.get("data", {}).items() if name in DATA), None)
        known = [in_markdown(name) for name in _listed(told)]
    images, captions = run.get("training_images"), run.get("training_captions")
    if images != captions:
        known.append(f"{images:,} images with {captions:,} captions")
    elif run.get("training_pairs") is not None:
        known.append(f"{run['training_pairs']:,} image-caption pairs")
    return ", ".join(known)


def headlines(figures: Iterable[Figure]) -> list[Figure]:
    """The figures that stand for their protocols: those of `HEADLINES`, and those that the paper reports on the set."""
    return [figure for figure in figures if figure.is_main or figure.name in HEADLINES.get(figure.task, ())]


def _rows(figures: list[Figure]) -> list[str]:
    """Rows of a table of figures. Means over test items are shares, shown in hundredths."""
    rows = []
    for figure in figures:
        data = in_markdown(figure.dataset_name) + (f" [{in_markdown(figure.split)}]" if figure.split else "")
        cells = [data, in_markdown(figure.task), in_markdown(figure.name)]
        if figure.items is None:
            cells += [f"{figure.value:.4g}", "", "", ""]
        else:
            cells += [f"{100 * figure.value:.2f} %", "" if figure.chance is None else f"{100 * figure.chance:.2f} %"]
            items = f"{figure.items:,}{in_words(figure.left_out, figure.shared)}"
            cells += [f"{100 * figure.low:.2f} to {100 * figure.high:.2f}", items]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file. Restore it, or remove it: {error}") from error


def read_comparison(folder: Path | None) -> dict[str, Any] | None:
    r"""
    Reads what `cyclip compare` found, without the names of local folders. The card reports it, and it is published with
    the card.

    Args:
        folder (`Path`, *optional*):
            The output folder of `cyclip compare`.

    Returns:
        `dict`: the results, or `None` without a folder.

    Raises:
        `ValueError`: the folder holds no report.
    """
    if folder is None:
        return None
    try:
        # Files of earlier versions have no `health`.
        results = {"health": {}, **json.loads((folder / "results.json").read_text(encoding="utf-8"))}
        return {name: results[name] for name in COMPARED}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not the output folder of cyclip compare: {error!r}") from error


def merge_results(card: ModelCard, results: Iterable[EvalResult], model_name: str) -> None:
    """
    Puts results into the metadata of a card. They replace results of the same measurement. The text and all other
    metadata stay. `model_name` is for a card that names no model.
    """
    merged = list(card.data.get("eval_results", []))
    for result in results:
        merged = [other for other in merged if not result.is_equal_except_value(other)] + [result]
    if merged:
        card.data.eval_results = merged
        card.data.model_name = card.data.get("model_name") or model_name


def write_card(output_dir: str | Path, card: ModelCard) -> None:
    """Saves a card as the folder's README.md, and its checksum beside it."""
    path = Path(output_dir, CARD)
    card.save(path)
    Path(output_dir, WRITTEN).write_text(sha256(path) + "\n")


def write_model_card(output_dir: str | Path, model_id: str, **kwargs) -> ModelCard:
    r"""
    Writes the card of a newly trained model; the Trainer calls this. An edited card in the folder describes an older
    model, so it is renamed to README.edited.md.

    Args:
        output_dir (`str` or `Path`):
            The training's output folder.
        model_id (`str`):
            The model's name on the Hub, or its folder.
        kwargs (*optional*):
            What else [`make_card`] takes.

    Returns:
        [`~huggingface_hub.ModelCard`]
    """
    if edited_card(output_dir) is not None:
        aside = Path(output_dir, CARD).rename(Path(output_dir, "README.edited.md"))
        logger.warning(f"The model is new, so its card is written anew; the edited one is now {aside}.")
    card = make_card(output_dir, model_id, **kwargs)
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
    """Raises a `ValueError` if the folder holds no checkpoint, or one whose weights are cut off or lack a file."""
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
    count_parameters(output_dir)  # it opens every file of the weights


def count_parameters(output_dir: Path) -> int:
    """How many numbers the weights hold. The statistics of batch norm are no parameters."""
    count = 0
    for path in weight_files(output_dir):
        try:
            with safe_open(path, "pt") as weights:
                for name in weights.keys():
                    if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                        count += math.prod(weights.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged: {error}. Save the model again.") from error
    return count


def sha256(content: Path | bytes) -> str:
    """The checksum by which the Hub tells large files apart."""
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return sha_fileobj(file).hex()


def draw_training_curve(log_history: list[dict], path: Path) -> bool:
    """
    Draws what the Trainer has logged. `False` if there is nothing to draw, or no matplotlib to draw it: a picture that is
    there already stays if it is of the same log, and is removed if it is of another training.
    """
    of_the_log = hashlib.sha256(json.dumps(log_history).encode()).hexdigest()
    if path.is_file():
        if of_the_log.encode() in path.read_bytes():
            return True
        path.unlink()
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
    # Without matplotlib's version in it, the same training gives the same file, which is then not uploaded again.
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None, "Source": f"log {of_the_log}"})
    return True
