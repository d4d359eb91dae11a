"""The page in which people try a model: what it answers, how it is published, and the page itself in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPModel,
    CLIPProcessor,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from model_cards.space.answers import MAX_LABELS, agree, majority, missing, most_similar, split_labels, zero_shot
from model_cards.space.checkpoint import Checkpoint, open_visitors_image
from modeling_cyclip.data.images import BrokenImageError, class_of, list_images, load_image
from modeling_cyclip.data.tokenizer import padding_of, positions_of
from modeling_cyclip.evaluation.consistency import neighbour_votes
from modeling_cyclip.hub.publish import NOTHING
from modeling_cyclip.hub.space import PACKAGES, PAGE, plan_space
from tests.conftest import COLOURS, coloured_image
from tests.dual_encoders import KINDS, clip, siglip, vit_and_bert
from tests.hub.conftest import make_run_folder


# What it answers


def test_zero_shot_gives_the_softmax_of_scaled_cosines():
    image, labels = torch.tensor([1.0, 0.0]), torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    found = zero_shot(["a", "b", "c"], image, labels, 10.0)
    assert found == pytest.approx({"b": 0.88054, "a": 0.11917, "c": 0.00030}, abs=1e-5)
    assert list(found) == ["b", "a", "c"]


def test_zero_shot_with_a_bias_gives_each_label_its_own_sigmoid_in_the_order_of_the_cosines():
    image, labels = torch.tensor([1.0, 0.0]), torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    found = zero_shot(["a", "b", "c"], image, labels, 10.0, -7.0)
    assert found == pytest.approx({"b": 0.73106, "a": 0.26894, "c": 0.00091}, abs=1e-5)
    same = zero_shot(["a", "b", "c"], image, labels, 100.0, 0.0)
    assert same["a"] == same["b"] == 1 and list(same) == ["b", "a", "c"]


@pytest.mark.parametrize("kind", ["clip", *KINDS])
def test_other_models_answer_as_in_plain_transformers(kind, tmp_path):
    torch.manual_seed(0)
    make_run_folder(tmp_path, *{**KINDS, "clip": clip}[kind]())
    checkpoint = Checkpoint(str(tmp_path))
    model, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    texts = ["a red square", "yellow", "a photo of a blue picture number 3"]
    image = coloured_image("green", size=20)
    inputs = processor(text=texts, images=[image], padding=padding_of(model.config), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[0]
    expected = logits.sigmoid() if kind == "siglip" else logits.softmax(dim=0)
    embeds = checkpoint.embed_texts(texts)
    (image_embed,) = checkpoint.embed_images([image])
    found = zero_shot(texts, image_embed, embeds, checkpoint.logit_scale, checkpoint.logit_bias)
    assert found == pytest.approx(dict(zip(texts, expected.tolist(), strict=True)), rel=1e-4)
    # A text is the same beside a longer one, and one that is too long is cut.
    torch.testing.assert_close(checkpoint.embed_texts(texts[1:2])[0], embeds[1], rtol=1e-4, atol=1e-5)
    assert checkpoint.max_length == positions_of(model.config)
    assert checkpoint.embed_texts([" ".join(100 * texts)]).shape == embeds[:1].shape


def test_towers_in_half_precision_get_pixels_in_theirs(tmp_path):
    # A ViT turns them itself.
    model, processor = vit_and_bert()
    vision = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, model.config.text_config)
    make_run_folder(tmp_path, VisionTextDualEncoderModel(config).bfloat16(), processor)
    checkpoint = Checkpoint(str(tmp_path))
    assert checkpoint.embed_images([coloured_image("red")]).shape == checkpoint.embed_texts(["red"]).shape


def test_most_similar_ranks_by_cosine_and_gives_no_more_than_there_are():
    embeds = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    query = torch.tensor([1.0, 0.0])
    assert most_similar(query, embeds, 3) == [(1, 1.0), (3, 1.0), (2, pytest.approx(0.6))]
    assert len(most_similar(query, embeds, 30)) == 4


@pytest.mark.parametrize(
    "classes, winner",
    [
        (["cat"], "cat"),
        (["cat", "dog", "dog"], "dog"),
        (["cat", "dog"], "cat"),
        (["bird", "dog", "cat", "cat", "dog"], "cat"),
    ],
)
def test_majority_leaves_out_the_farthest_where_several_lead(classes, winner):
    assert majority(classes) == winner


def test_answers_agree_whatever_the_case_and_cannot_be_compared_without_a_common_label():
    labels = ["Polar bear", "dog"]
    assert agree("Polar bear", "polar_bear", labels) is True
    assert agree("dog", "polar bear", labels) is False
    assert agree("dog", "cat", labels) is None


def test_images_come_from_class_folders(tmp_path):
    for path in ("polar_bear/old/1.JPG", "dog/2.png", "3.png", "dog/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = [class_of(path, tmp_path) for path in list_images(tmp_path)]
    assert found == ["dog", "polar bear"] and list_images(tmp_path / "absent") == []
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "3.png")
    assert load_image(tmp_path / "3.png").getpixel((0, 0)) == (255, 0, 0)  # as a pipeline opens it


def test_labels_are_split_and_each_counts_once():
    assert split_labels("cat, dog,,\n bird , cat\n") == ["cat", "dog", "bird"]


MANY = [f"label {number}" for number in range(MAX_LABELS + 1)]


@pytest.mark.parametrize(
    "has_image, names, sentence, said",
    [
        (False, ["cat", "dog"], "a {}", "Drop an image first."),
        (True, ["cat"], "a {}", "Type at least two labels, with commas between."),
        (True, MANY, "a {}", "These are 201 labels. Type at most 200."),
        (True, ["cat", "dog"], "a photo", "The sentence needs {} where the label goes."),
        (True, MANY[1:], "a {}", None),
    ],
)
def test_says_what_is_missing(has_image, names, sentence, said):
    assert missing(has_image, names, sentence) == said


def test_images_of_visitors_are_bounded_in_pixels_before_they_are_decoded(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr("model_cards.space.checkpoint.load_image", lambda path: decoded.append(path))
    Image.new("1", (10_000, 6_000)).save(tmp_path / "large.png")
    with pytest.raises(BrokenImageError, match="10,000 × 6,000 pixels, and this page opens 50 million at most"):
        open_visitors_image(str(tmp_path / "large.png"))
    Image.new("1", (100, 60)).save(tmp_path / "small.png")
    open_visitors_image(str(tmp_path / "small.png"))
    assert decoded == [str(tmp_path / "small.png")]


def test_images_of_visitors_that_are_broken_say_why(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(BrokenImageError, match="cannot identify image file"):
        open_visitors_image(str(tmp_path / "broken.png"))


def test_page_is_called_after_the_model_and_not_after_its_folder(run_folder):
    assert Checkpoint(str(run_folder)).name == "vit"


# How it is published


@pytest.fixture
def images(tmp_path) -> Path:
    """Three shades of four colours, a folder a colour, and a file that is no image."""
    folder = tmp_path / "pictures"
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for level in range(3):
            coloured_image(colour, level).save(folder / colour / f"{level}.png")
    (folder / "red" / "broken.png").write_bytes(b"not an image")
    return folder


PARTS = {"modeling_cyclip/data/images.py", "modeling_cyclip/evaluation/ranking.py"}
CODE = {"app.py", "answers.py", "checkpoint.py", "requirements.txt"} | PARTS


def test_space_is_published_beside_the_model(hub, publish, run_folder, images):
    done = publish(run_folder, "tester/vit", "--with_space", "--space_images", images, "--dry_run")
    assert done.returncode == 0 and hub.repos == {}, done.stderr
    _, of_the_space = done.stdout.split("The Space tester/vit would be published with")
    assert all(name in of_the_space for name in [*CODE, "README.md", "checkpoint.json", "images/red/0.png"])

    done = publish(run_folder, "tester/vit", "--with_space", "--space_images", images, "--private")
    assert done.returncode == 0, done.stderr
    assert hub.repos["spaces/tester/vit"].is_private and "model.safetensors" in hub.files("tester/vit")
    files = hub.files("spaces/tester/vit")
    assert CODE < set(files) and files["images/red/0.png"] == (images / "red" / "0.png").read_bytes()
    expected = {"name": "tester/vit", "revision": None, "trust_remote_code": False}
    assert json.loads(files["checkpoint.json"]) == expected
    data = SpaceCard(files["README.md"].decode()).data
    assert (data.title, data.sdk, data.app_file, data.models) == ("Try vit", "gradio", "app.py", ["tester/vit"])
    assert data.license == "mit"

    done = publish(run_folder, "tester/vit", "--with_space")
    assert done.returncode == 0 and len(hub.repos["spaces/tester/vit"].log) == 2, done.stderr


@pytest.mark.parametrize(
    "vision_type, added", [("vit", []), *((name, [package]) for name, package in PACKAGES.items())]
)
def test_space_installs_what_the_vision_tower_needs(vision_type, added, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"model_type": vision_type}}))
    uploads, _ = plan_space(tmp_path, "tester/vit", NOTHING)
    requirements = uploads["requirements.txt"]
    if isinstance(requirements, Path):
        requirements = requirements.read_bytes()
    assert requirements.decode().splitlines() == (PAGE / "requirements.txt").read_text().splitlines() + added


def test_space_is_as_private_as_a_model_and_named_with_its_namespace(hub, publish, run_folder):
    publish(run_folder, "vit", "--private")
    done = publish(run_folder, "vit", "--with_space")
    assert done.returncode == 0, done.stderr
    assert hub.repos["spaces/tester/vit"].is_private
    assert json.loads(hub.files("spaces/tester/vit")["checkpoint.json"])["name"] == "tester/vit"


@pytest.mark.slow
def test_updated_space_keeps_its_words_and_takes_new_images(hub, publish, run_folder, images):
    publish(run_folder, "tester/vit", "--with_space", "--space_images", images)
    card = SpaceCard(hub.files("spaces/tester/vit")["README.md"].decode())
    card.data.title, card.data["emoji"], card.data.sdk_version = "Colours", "🎨", "5.0.0"
    card.text += "\nWords that somebody added in the browser.\n"
    hub.edit("spaces/tester/vit", "README.md", str(card).encode())
    hub.edit("spaces/tester/vit", "notes.md", b"somebody's")
    shutil.rmtree(images / "green")
    assert publish(run_folder, "tester/vit", "--with_space", "--space_images", images).returncode == 0
    files = hub.files("spaces/tester/vit")
    updated = SpaceCard(files["README.md"].decode())
    assert updated.text == card.text and updated.data.title == "Colours" and updated.data["emoji"] == "🎨"
    assert updated.data.sdk_version != "5.0.0"
    assert files["notes.md"] == b"somebody's" and "images/red/0.png" in files and "images/green/0.png" not in files

    assert publish(run_folder, "tester/vit", "--with_space").returncode == 0
    assert hub.files("spaces/tester/vit") == files


def test_space_with_another_app_stays(hub, publish, run_folder):
    hub.create_repo("tester", {"name": "vit", "type": "space", "sdk": "gradio"})
    hub.edit("spaces/tester/vit", "app.py", b"print('mine')")
    done = publish(run_folder, "tester/vit", "--with_space")
    assert done.returncode != 0 and "holds another app" in done.stderr and "Traceback" not in done.stderr
    assert hub.files("spaces/tester/vit")["app.py"] == b"print('mine')"


def test_folder_without_images_is_refused_before_anything_is_published(hub, publish, run_folder, tmp_path):
    done = publish(run_folder, "tester/vit", "--with_space", "--space_images", tmp_path / "absent")
    assert done.returncode != 0 and "has no images in subfolders" in done.stderr and hub.repos == {}
    done = publish(run_folder, "tester/vit", "--space_images", tmp_path)
    assert done.returncode != 0 and "add --with_space" in done.stderr


# As the Hub runs it: of modeling_cyclip there are the two files that lie in the Space, and nothing is installed.
ON_THE_HUB = """
import sys
from importlib.machinery import PathFinder

class Alone:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, ["."]) if name == "modeling_cyclip" else None

sys.meta_path.insert(0, Alone())
sys.path.insert(0, "")
"""


def write_space(hub, repo_id: str, folder: Path) -> None:
    for path, content in hub.files(f"spaces/{repo_id}").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_space_brings_all_that_it_needs_of_the_package(kind, hub, publish, run_folder, images, tmp_path):
    if kind == "siglip":
        shutil.rmtree(run_folder)
        make_run_folder(run_folder, *siglip())
    assert publish(run_folder, "tester/vit", "--with_space", "--space_images", images).returncode == 0
    write_space(hub, "tester/vit", tmp_path / "space")
    code = f"""{ON_THE_HUB}
from pathlib import Path
from answers import majority, most_similar
from checkpoint import Checkpoint, embed_folder

checkpoint = Checkpoint("tester/vit")
assert checkpoint.embed_texts(["red", "a photo of blue"]).shape[0] == 2
references = embed_folder(Path("images"), checkpoint)
found = most_similar(references.embeds[0], references.embeds, 1)
assert references.paths[found[0][0]] == Path("images/blue/0.png") and majority(references.classes[:4]) == "blue"
assert references.broken == ["red/broken.png"]
assert sys.modules["modeling_cyclip"].__file__ is None
loaded = {{name for name in sys.modules if name.startswith("modeling_cyclip.")}}
print(*sorted(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=tmp_path / "space", env=hub.environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [
        "modeling_cyclip.data", "modeling_cyclip.data.images", "modeling_cyclip.evaluation", "modeling_cyclip.evaluation.ranking",
    ]  # fmt: skip


# The page in a browser

BROWSER = shutil.which("chromium")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture
def playwright():
    """Playwright's API; skips where it, chromium or Gradio is absent."""
    pytest.importorskip("gradio")
    api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium")
    api.expect.set_options(timeout=60_000)
    return api


@contextmanager
def opened_page(playwright, hub, repo_id: str, workplace: Path) -> Iterator:
    """The Space as the Hub would run it: its files, plain transformers, no installed package of ours. Yields playwright's page."""
    write_space(hub, repo_id, workplace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = hub.environment(workplace / "home") | {"GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    code = f"{ON_THE_HUB}\nimport runpy\nrunpy.run_path('app.py', run_name='__main__')"
    command = [sys.executable, "-c", code]
    log = subprocess.PIPE
    app = subprocess.Popen(command, cwd=workplace, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in app.stdout:
            lines.append(line)
            if "Running on" in line:
                break
        else:
            pytest.fail("".join(lines))
        with playwright.sync_playwright() as driver:
            # A profile of its own; HOME, since chromium writes there, too.
            context = driver.chromium.launch_persistent_context(
                workplace / "profile", executable_path=BROWSER, headless=True, args=SWITCHES,
                env={**os.environ, "HOME": str(workplace)},
            )  # fmt: skip
            foreign = []
            context.route(
                lambda url: not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")),
                lambda route: (foreign.append(route.request.url), route.abort()),
            )
            page = context.pages[0]
            page.goto(f"http://127.0.0.1:{port}/")
            yield page
            context.close()
        assert foreign == []  # nothing is fetched from elsewhere
    finally:
        app.terminate()
        app.wait()


def test_page_answers_in_both_spaces_and_searches(playwright, hub, publish, run_folder, images, tmp_path):
    assert publish(run_folder, "tester/vit", "--with_space", "--space_images", images).returncode == 0

    # The answers, by plain transformers and evaluation.
    model, processor = CLIPModel.from_pretrained(run_folder).eval(), CLIPProcessor.from_pretrained(run_folder)
    files, names = sorted(images.glob("*/[0-9].png")), sorted(COLOURS)
    texts = [*(f"a picture: {name}" for name in names), "yellow"]
    inputs = processor(text=texts, images=[Image.open(path) for path in files], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    embeds, classes = outputs.image_embeds, torch.tensor([names.index(path.parent.name) for path in files])
    votes = neighbour_votes(embeds, embeds, classes, [5])[5].tolist()
    rankings = outputs.logits_per_image[:, :4].argsort(dim=1, descending=True).tolist()
    nearest = [files[row] for row in (embeds @ embeds.T).topk(2, dim=1).indices[:, 1].tolist()]
    found = [files[row] for row in (outputs.text_embeds[4] @ embeds.T).argsort(descending=True).tolist()]
    # Images whose neighbours' class is not the text that is farthest, or nearest: beside that, the answers do, or do not, agree.
    agreeing = next(row for row in range(len(files)) if votes[row] != rankings[row][-1])
    disagreeing = next(row for row in range(len(files)) if votes[row] != rankings[row][0])
    cases = [
        (agreeing, rankings[agreeing][-1], "They agree: both spaces say {voted}."),
        (disagreeing, rankings[disagreeing][0], "They disagree: text space says {other}, image space says {voted}."),
    ]

    with opened_page(playwright, hub, "tester/vit", tmp_path / "space") as page:
        expect = playwright.expect
        answer, captions = page.locator(".verdict"), page.locator(".caption-label:visible")
        expect(page.get_by_role("heading", name="Try vit", exact=True)).to_be_visible()
        expect(page.get_by_label("Labels")).to_have_value("blue, green, red, yellow")
        expect(page.get_by_text("Could not be opened: red/broken.png").first).to_be_visible()
        page.get_by_label("Sentence").fill("a picture: {}")
        for row, other, words in cases:
            page.get_by_label("Labels").fill(f"{names[votes[row]]}, {names[other]}")
            page.get_by_test_id("file-upload").set_input_files(files[row])
            expect(captions.first).to_have_text(f"{files[row].parent.name} · 1.000")
            expect(captions).to_have_count(5)
            expect(captions.nth(1)).to_contain_text(nearest[row].parent.name)
            expect(answer).to_have_text(words.format(voted=names[votes[row]], other=names[other]))

        page.get_by_label("Labels").fill("one, two")
        page.get_by_role("button", name="Classify").click()
        expect(answer).to_contain_text("They cannot be compared")
        page.get_by_label("Labels").fill("one")
        page.get_by_role("button", name="Classify").click()
        expect(answer).to_contain_text("Type at least two labels")

        page.get_by_label("Labels").fill(", ".join(MANY))
        page.get_by_role("button", name="Classify").click()
        expect(answer).to_contain_text("Type at most 200")

        page.get_by_role("tab", name="Search by text").click()
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_text("Type what to search for.")).to_be_visible()
        page.get_by_placeholder("a photo of a dog in the snow").fill("yellow")
        page.get_by_role("button", name="Search").click()
        ranks = [re.compile(rf"^{rank}\. {path.parent.name} ·") for rank, path in enumerate(found, start=1)]
        expect(captions).to_have_text(ranks)
        # As on a phone: both tabs are in sight, nothing is wider than the screen, and no row of images is cut.
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.get_by_role("tab", name="Classify")).to_be_visible()
        expect(page.get_by_role("tab", name="Search by text")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wraps = page.locator(".grid-wrap:visible")
        assert wraps.evaluate_all("boxes => boxes.every(box => box.scrollHeight <= box.clientHeight + 1)")


def test_page_of_a_resnet_without_images_shows_the_zero_shot_answer_alone(
    playwright, hub, publish, resnet_folder, tmp_path
):
    assert publish(resnet_folder, "tester/resnet", "--with_space").returncode == 0
    assert json.loads(hub.files("spaces/tester/resnet")["checkpoint.json"])["trust_remote_code"] is True
    coloured_image("red", size=32).save(tmp_path / "red.png")
    with opened_page(playwright, hub, "tester/resnet", tmp_path / "space") as page:
        expect = playwright.expect
        expect(page.get_by_text("There are no images to compare with").first).to_be_visible()
        page.get_by_label("Labels").fill("red, <b>green</b>")
        page.get_by_test_id("file-upload").set_input_files(tmp_path / "red.png")
        expect(page.locator(".verdict")).to_contain_text("Text space says")
        expect(page.get_by_text("Votes")).to_have_count(0)
