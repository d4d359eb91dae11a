"""What pictures of a measured set show."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.colors import to_rgba

from modeling_cyclip.evaluation import plots
from modeling_cyclip.evaluation.plots import GREEN, RED, class_bars, confusion_matrix, contact_sheet
from tests.conftest import coloured_image


NAMES = ["red", "green", *(f"class {number}" for number in range(40))]


@pytest.fixture
def test_set():
    """Two red images and a green one, of which the green one is taken for red, among 42 classes."""
    rows = [{"image": coloured_image(colour)} for colour in ("red", "red", "green")]
    embeds = torch.eye(42)
    return SimpleNamespace(
        data=SimpleNamespace(dataset=rows), image_embeds=embeds[[0, 0, 0]], labels=torch.tensor([0, 0, 1])
    )


def test_contact_sheet_asks_for_what_the_data_hold_and_frames_right_and_wrong(test_set):
    figure = contact_sheet(test_set, NAMES, torch.eye(42), {"red": [0, 1], "green": [2]}, "colours, 3 images", 0)
    shown = figure.subfigs[1].axes
    assert [axes.texts[0].get_text() for axes in shown if axes.texts] == ["red", "green"]
    frames = [axes.spines["left"].get_edgecolor() for axes in shown if axes.images]
    green, red = to_rgba(GREEN), to_rgba(RED)
    assert frames == [green, green, red, red, red, green]
    dashed = [axes.spines["left"].get_linestyle() == "--" for axes in shown if axes.images]
    assert dashed == [frame == red for frame in frames]
    assert figure.get_suptitle().startswith("colours, 3 images")


def test_confusion_matrix_has_the_classes_that_occur(test_set):
    figure = confusion_matrix(test_set.labels, torch.tensor([0, 7, 0]), NAMES, "colours, 3 images")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["red", "green"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["red", "green", "any other"]
    assert axes.images[0].get_array().tolist() == [[50, 0, 50], [100, 0, 0]]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "50"),
        ((2, 0), "50"),
        ((0, 1), "100"),
    ]


def test_confusion_matrix_of_many_classes_has_numbers():
    labels = torch.arange(30)
    names = [f"class {number}" for number in labels.tolist()]
    axes = confusion_matrix(labels, labels, names, "30 images").axes[0]
    assert [text.get_text() for text in axes.texts] == ["100"] * 30


def test_most_confused_classes_stand_beside_those_they_are_taken_for():
    # The first 30 classes are taken for their neighbours, the others for the last one.
    labels = torch.arange(60)
    predictions = torch.cat([(labels[:30] + 1) % 30, torch.full((30,), 59)])
    axes = confusion_matrix(labels, predictions, [f"class {number}" for number in labels.tolist()], "60 images").axes[
        0
    ]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"class {number}" for number in range(30, 60)]


def test_images_beside_captions_have_the_names_of_their_classes(test_set, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.setdefault(path.name, figure))
    test_set.data = SimpleNamespace(
        dataset=test_set.data.dataset,
        name="colours",
        class_names=NAMES,
        captions=[["a red"], ["also red"], ["green"]],
    )
    test_set.class_embeds, test_set.caption_embeds = torch.eye(42), torch.eye(42)[:3]
    test_set.caption_images = torch.tensor([0, 1, 2])
    plots.draw_pictures(test_set, tmp_path, 0)
    names = [label.get_text() for label in drawn["pair_similarity"].axes[0].get_yticklabels()]
    assert names == ["image 0, red", "image 1, red", "image 2, green"]


def test_bars_carry_their_values_and_the_setting(test_set):
    figure = class_bars(test_set.labels, torch.tensor([0, 7, 0]), NAMES, "colours, 3 images")
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0", "0.0"]
    assert "colours, 3 images" in figure.axes[0].get_title()
