"""Shows in the browser what a checkpoint's text space and image space say of a picture, and searches images by text.

As a Space, it opens the checkpoint that checkpoint.json names and the images in images/. On a machine of your own:

python app.py --model user/name --images FOLDER
"""

import argparse
import json
from collections import Counter
from html import escape
from pathlib import Path

import gradio as gr
from answers import MAX_LABELS, agree, majority, missing, most_similar, split_labels, zero_shot
from checkpoint import Checkpoint, ReferenceImages, embed_folder, open_visitors_image

from modeling_cyclip.data.images import BrokenImageError


HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint.json"  # in a Space: the arguments of Checkpoint
FOUND = 24  # images that a search shows
SHOWN_LABELS = 5
MAX_FILE_SIZE = "20mb"

# Fonts of the visitor's system: nothing is fetched from elsewhere.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.answer .html-container {padding: 0}
.verdict {border-radius: 8px; padding: 12px 16px; font-size: 1.1rem; color: #1f2937; background: #e5e7eb}
.verdict.agree {background: #bbf7d0}
.verdict.disagree {background: #fed7aa}
.verdict b {color: inherit}
.whole .grid-wrap {min-height: 0 !important; max-height: none !important; overflow: visible}
.whole .thumbnail-item {aspect-ratio: auto !important; height: auto !important; align-self: start; display: block !important}
.whole .thumbnail-item img {aspect-ratio: 1; height: auto !important}
.whole .caption-label {position: static !important; max-width: 100% !important; text-align: center; white-space: normal !important}
@media (max-width: 640px) {
  .gradio-container h1 {font-size: 1.4rem; overflow-wrap: anywhere}
  .whole .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
  .whole .caption-label {font-size: 0.7rem; padding: 2px}
}
"""


def build_page(checkpoint: Checkpoint, references: ReferenceImages) -> gr.Blocks:
    def classify(path: str | None, labels: str, sentence: str, count: int) -> tuple:
        names = split_labels(labels)
        if (what := missing(path is not None, names, sentence)) is not None:
            return verdict(what), None, None, []
        try:
            image = open_visitors_image(path)
        except BrokenImageError as error:
            reason = escape(error.reason.replace(path, Path(path).name))
            return verdict(f"This image cannot be opened: {reason}."), None, None, []
        image_embed = checkpoint.embed_images([image])[0]
        label_embeds = checkpoint.embed_texts([sentence.replace("{}", name) for name in names])
        probabilities = zero_shot(names, image_embed, label_embeds, checkpoint.logit_scale, checkpoint.logit_bias)
        label = next(iter(probabilities))
        if not has_images:
            return verdict(f"Text space says {bold(label)}."), probabilities, None, []

        neighbours = most_similar(image_embed, references.embeds, count)
        classes = [references.classes[row] for row, _ in neighbours]
        votes = {name: number / len(classes) for name, number in Counter(classes).items()}
        images = [(references.paths[row], f"{references.classes[row]} · {cosine:.3f}") for row, cosine in neighbours]
        return say_whether_they_agree(label, majority(classes), names), probabilities, votes, images

    def search(text: str) -> list[tuple[Path, str]]:
        if not text.strip():
            raise gr.Error("Type what to search for.", print_exception=False)
        found = most_similar(checkpoint.embed_texts([text])[0], references.embeds, FOUND)
        return [
            (references.paths[row], f"{rank}. {references.classes[row]} · {cosine:.3f}")
            for rank, (row, cosine) in enumerate(found, start=1)
        ]

    has_images = bool(references.paths)
    of_labels = "each label" if checkpoint.logit_bias is None else "each label by itself: they need not add up to one"
    of_galleries = {"show_label": False, "buttons": [], "visible": has_images}
    of_galleries |= {"height": "auto", "object_fit": "contain", "elem_classes": "whole"}
    with gr.Blocks(title=f"Try {checkpoint.name}", analytics_enabled=False) as page:
        gr.Markdown(
            f"# Try {checkpoint.name}\n"
            "This model places images and texts in one space. So a picture can be classified twice: in **text space** by the "
            "nearest label, and in **image space** by the class of the nearest images. How often the two agree is what the "
            "[CyCLIP paper](https://arxiv.org/abs/2205.14459) calls consistency."
        )
        with gr.Tab("Classify"), gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(
                    type="filepath", image_mode=None, label="Image", height=260, sources=["upload", "clipboard"]
                )
                # Gradio would decode the image, however large it is, and answer a broken one with no word.
                image.preprocess = lambda sent: None if sent is None else sent.path
                labels = gr.Textbox(
                    ", ".join(references.class_names[:MAX_LABELS]), label="Labels", max_lines=4, max_length=20_000,
                    info=f"With commas between, at most {MAX_LABELS}.", placeholder="cat, dog, bird",
                )  # fmt: skip
                sentence = gr.Textbox(
                    "a photo of a {}.",
                    label="Sentence",
                    max_length=500,
                    info="What the model reads: {} stands for each label.",
                )
                count = gr.Slider(1, 30, value=5, step=1, label="Nearest images that vote", visible=has_images)
                button = gr.Button("Classify", variant="primary")
            with gr.Column(scale=5):
                answer = gr.HTML(verdict("Drop an image first."), elem_classes="answer")
                with gr.Row():
                    with gr.Column(min_width=280):
                        gr.Markdown(f"### Text space: zero-shot\nProbability of {of_labels}.")
                        by_text = gr.Label(label="Zero-shot", num_top_classes=SHOWN_LABELS)
                    with gr.Column(min_width=280):
                        gr.Markdown(f"### Image space: nearest images\n{describe(references)}")
                        by_images = gr.Label(label="Votes", num_top_classes=SHOWN_LABELS, visible=has_images)
                        gallery = gr.Gallery(label="Nearest images", columns=3, **of_galleries)
        with gr.Tab("Search by text"):
            gr.Markdown(describe(references))
            query = gr.Textbox(
                label="Text",
                placeholder="a photo of a dog in the snow",
                submit_btn="Search",
                visible=has_images,
                max_length=1000,
            )
            found = gr.Gallery(label="Images found", columns=6, **of_galleries)

        gr.on(
            [button.click, image.change, labels.submit, sentence.submit, count.release],
            classify,
            [image, labels, sentence, count],
            [answer, by_text, by_images, gallery],
            api_name="classify",
        )
        query.submit(search, query, found, api_name="search")
    return page


def describe(references: ReferenceImages) -> str:
    if not references.paths:
        text = "There are no images to compare with. Put some into `images/`, in a folder for each class: `images/dog/1.jpg`."
    else:
        text = f"Of {len(references.paths):,} images in {len(references.class_names):,} classes; each with its cosine."
    if references.broken:
        text += f" Could not be opened: {', '.join(f'`{name}`' for name in references.broken)}."
    return text


def say_whether_they_agree(label: str, neighbours_class: str, labels: list[str]) -> str:
    says = f"text space says {bold(label)}, image space says {bold(neighbours_class)}"
    return {
        True: verdict(f"<b>They agree</b>: both spaces say {bold(label)}.", "agree"),
        False: verdict(f"<b>They disagree</b>: {says}.", "disagree"),
        None: verdict(f"<b>They cannot be compared</b>: {says}, which is none of the labels."),
    }[agree(label, neighbours_class, labels)]


def verdict(text: str, kind: str = "") -> str:
    return f'<div class="verdict {kind}">{text}</div>'


def bold(name: str) -> str:
    return f"<b>{escape(name)}</b>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Try a checkpoint in the browser.")
    parser.add_argument(
        "--model",
        required=not CHECKPOINT.is_file(),
        help="name on the Hub, or folder (default: what checkpoint.json says)",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that the checkpoint brings")
    parser.add_argument(
        "--images", type=Path, default=HERE / "images", help="images to compare with, in one subfolder for each class"
    )
    args = parser.parse_args()
    if args.model is None:
        checkpoint = Checkpoint(**json.loads(CHECKPOINT.read_text()))
    else:
        checkpoint = Checkpoint(args.model, trust_remote_code=args.trust_remote_code)
    page = build_page(checkpoint, embed_folder(args.images, checkpoint))
    page.launch(
        theme=THEME, css=CSS, allowed_paths=[str(args.images)], footer_links=["gradio", "settings"],
        max_file_size=MAX_FILE_SIZE, show_error=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
