"""Images by their content: which two sets share, and folds of one set, against loops."""

import os

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from modeling_cyclip.evaluation import content
from modeling_cyclip.evaluation.content import folds, image_digests, shared_images
from modeling_cyclip.evaluation.embeddings import EmbeddedSet
from modeling_cyclip.evaluation.evaluation_set import EvaluationSet
from modeling_cyclip.evaluation.protocols import run_consistency, run_linear_probe
from tests.conftest import coloured_image
from tests.evaluation.protocol_inputs import random_embeds, random_labels, slow_order


def images(levels, folder=None):
    """Rows of images; with a folder they only name files."""
    pictures = [coloured_image("red", level) for level in levels]
    if folder is not None:
        folder.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.png")
        pictures = [str(folder / f"{number}.png") for number in range(len(pictures))]
    return Dataset.from_dict({"image": pictures}).cast_column("image", Image(decode=False))


def test_shared_images_are_found_by_content_in_files_and_in_tables(tmp_path, monkeypatch):
    test, train = images([1, 2, 3, 4], tmp_path / "test"), images([9, 3, 8, 1], tmp_path / "train")
    embedded = Dataset.from_dict({"image": [(tmp_path / "train" / f"{row}.png").read_bytes() for row in range(4)]})
    embedded = embedded.map(lambda row: {"image": {"bytes": row["image"], "path": None}}, remove_columns="image")
    embedded = embedded.cast_column("image", Image(decode=False))
    assert shared_images(test, train) == shared_images(test, embedded) == (2, 4)
    assert image_digests(train) == image_digests(embedded)
    monkeypatch.setattr(content, "MAX_SAMPLE", 2)
    # Rows 0 and 2, the levels 1 and 3.
    assert shared_images(test, train) == (2, 2)


def test_a_file_that_is_not_there_is_nobody_elses():
    rows = Dataset.from_dict({"image": ["no.png", "nothing.png"]}).cast_column("image", Image(decode=False))
    assert len(set(image_digests(rows))) == 2
    assert shared_images(rows.select([0]), rows.select([1])) == (0, 1)


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    fifo = Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", Image(decode=False))
    assert image_digests(fifo) != image_digests(images([1], tmp_path / "test"))


def test_folds_hold_equal_images_together_and_spread_classes():
    digests = [bytes([number // 2]) for number in range(40)]
    labels = torch.tensor([number // 2 % 4 for number in range(40)])
    fold = folds(digests, labels, 5, seed=0)
    assert torch.equal(fold[::2], fold[1::2])
    counts = torch.stack([torch.bincount(labels[fold == number], minlength=4) for number in range(5)])
    assert (counts == 2).all()
    assert torch.equal(fold, folds(digests, labels, 5, seed=0)) and not torch.equal(
        fold, folds(digests, labels, 5, seed=1)
    )
    for wrong in (1, 21):
        with pytest.raises(ValueError, match=f"no more than the 20 different images, got {wrong}"):
            folds(digests, labels, wrong, seed=0)


def embedded_set(num_folds):
    embeds, labels = random_embeds(36, 6, seed=0), random_labels(36, 3)
    # The last six images are those before them.
    rows = images([*range(30), *range(24, 30)])
    data = EvaluationSet("a", rows, None, [], False, labels, list("abc"), num_folds=num_folds)
    classes = random_embeds(3, 6, seed=1)
    return EmbeddedSet(data, 3 * embeds, embeds, labels, classes, None, None, None, [], 0, "")


def test_consistency_over_folds_equals_a_loop_over_images():
    test = embedded_set(4)
    fold = folds(image_digests(test.data.dataset), test.labels, 4, seed=0)
    agree = []
    for row in range(36):
        others = (fold != fold[row]).nonzero()[:, 0]
        nearest = others[slow_order((test.image_embeds[others] @ test.image_embeds[row]).tolist())[0]]
        prediction = slow_order((test.class_embeds @ test.image_embeds[row]).tolist())[0]
        agree.append(float(test.labels[nearest] == prediction))
    measure = run_consistency(test)["k=1"]
    assert measure.scores.tolist() == agree and 0 < np.mean(agree) < 1


def test_probe_over_folds_scores_each_image_once_and_never_by_itself():
    test = embedded_set(3)
    figures = run_linear_probe(test)
    assert len(figures["official accuracy"]) == len(figures["logistic regression accuracy"]) == 36
    assert torch.equal(figures["official mean_per_class"].classes, test.labels)
    # Labels are drawn by chance. A probe that had seen its images would know many of them.
    assert figures["official accuracy"].value < 0.6
