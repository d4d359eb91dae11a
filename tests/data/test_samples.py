"""Samples of a captioned dataset: captions drawn, broken images replaced and reported."""

import io
import itertools
import pickle
import re

import datasets
import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from modeling_cyclip import CyCLIPDataCollator
from modeling_cyclip.data import samples as samples_module
from modeling_cyclip.data.augment import SecondView
from modeling_cyclip.data.sampler import EpochSampler, make_train_sampler
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator, check_columns
from tests.conftest import COLOURS, coloured_image


def rows(num_rows, broken=()):
    return [
        {
            "image": b"no image" if index in broken else Image.new("RGB", (4, 4), (index, 0, 0)),
            "caption": [f"{index}a", f"{index}b"],
        }
        for index in range(num_rows)
    ]


def test_one_caption_is_drawn_each_epoch_the_same_for_the_same_key():
    samples = CaptionedSamples(rows(50), seed=0)
    epochs = [[samples[epoch, index]["caption"] for index in range(50)] for epoch in range(2)]
    assert epochs[0] == [samples[0, index]["caption"] for index in range(50)]
    assert epochs[0] != epochs[1]
    assert {caption[-1] for caption in epochs[0]} == {"a", "b"}


def test_evaluation_takes_the_first_caption():
    assert CaptionedSamples(rows(3), seed=0)[2]["caption"] == "2a"


def with_sampler(num_rows, batch_size, seed=0, broken=(), captions=None):
    sampler = EpochSampler(num_rows, batch_size, seed, captions=captions)
    return CaptionedSamples(rows(num_rows, broken), seed, sampler=sampler)


def global_batches(samples, epoch, num_processes=1):
    """The rows of each global batch, as so many processes read their parts of it."""
    samples = [pickle.loads(pickle.dumps(samples)) for _ in range(num_processes)]
    samples[0].sampler.set_epoch(epoch)
    keys = list(samples[0].sampler)
    size = samples[0].sampler.batch_size // num_processes
    parts = [
        samples[part % num_processes].__getitems__(keys[part * size : part * size + size])
        for part in range(len(keys) // size)
    ]
    indices = [sample["index"] for part in parts for sample in part]
    return [indices[start : start + size * num_processes] for start in range(0, len(indices), size * num_processes)]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_no_row_comes_twice_in_a_global_batch(num_processes):
    for seed in range(200):
        # A column of a small set may be broken throughout: then a row of another one is taken.
        broken = set(np.random.default_rng(seed).choice(26, size=8, replace=False).tolist())
        for batch in global_batches(with_sampler(26, 6, seed, broken), 1, num_processes):
            assert len(set(batch)) == 6 and not broken & set(batch)


@pytest.mark.parametrize("num_rows, batch_size", [(160, 12), (30, 12), (15, 12)])
def test_a_replacement_is_that_of_any_number_of_processes(num_rows, batch_size):
    broken = {3, 4, 11} if num_rows == 15 else set(range(0, num_rows, 3))
    samples = with_sampler(num_rows, batch_size, broken=broken)
    for epoch in range(3):
        whole, *divided = (global_batches(samples, epoch, number) for number in (1, 2, 3, 12))
        assert divided == [whole] * 3


def test_a_replacement_does_not_depend_on_the_neighbours():
    samples = with_sampler(60, 6, broken=range(0, 60, 3))
    samples.sampler.set_epoch(2)
    keys = list(samples.sampler)[:6]
    expected = {key: samples[key]["index"] for key in keys}
    for neighbours in itertools.permutations(keys, 3):
        assert [sample["index"] for sample in samples.__getitems__(list(neighbours))] == [
            expected[key] for key in neighbours
        ]


def test_workers_find_the_same_replacements():
    samples = with_sampler(60, 6, broken=range(0, 60, 3))
    read = [
        [
            [sample["index"] for sample in batch]
            for batch in DataLoader(samples, 6, sampler=samples.sampler, collate_fn=list, num_workers=num_workers)
        ]
        for num_workers in (0, 2)
    ]
    assert read[0] == read[1]


def test_what_is_replaced_is_named_and_the_replacement_is_whole():
    broken = set(range(0, 60, 3))
    samples = with_sampler(60, 20, broken=broken)
    batch = samples.__getitems__(list(samples.sampler)[:20])
    for sample in batch:
        assert (
            sample["caption"][:-1] == str(sample["index"]) and sample["image"].getpixel((0, 0))[0] == sample["index"]
        )
    reported = {index for sample in batch for index in sample["broken_images"]}
    assert broken & {index for _, index in list(samples.sampler)[:20]} <= reported <= broken


def test_a_replacement_prefers_captions_that_the_batch_does_not_have():
    captions = [f"caption {number // 2}" for number in range(24)]
    for seed in range(20):
        sampler = EpochSampler(24, 4, seed, captions=captions)
        order = [index for _, index in sampler]
        samples = CaptionedSamples(
            [
                {"image": b"" if index == order[0] else Image.new("RGB", (4, 4)), "caption": caption}
                for index, caption in enumerate(captions)
            ],
            seed,
            sampler=sampler,
        )
        batch = samples.__getitems__([(0, index) for index in order[:4]])
        assert batch[0]["index"] not in order[:4]
        assert len({sample["caption"] for sample in batch}) == 4


def test_an_evaluation_draws_its_replacements_by_seed_and_row():
    samples = CaptionedSamples(rows(50, broken={7, 8}), seed=0)
    alone = samples[7]["index"]
    assert alone not in {7, 8}
    assert [samples.__getitems__([7, other])[0]["index"] for other in (alone, 8, 9)] == [alone] * 3


def test_a_set_without_readable_images_ends_with_the_reason():
    with pytest.raises(ValueError, match=r"could not be read|No readable image"):
        CaptionedSamples(rows(8, broken=range(8)), seed=0).__getitems__(list(range(4)))


@pytest.mark.parametrize("num_rows, batch_size, broken", [(8, 4, range(8)), (4, 4, [2]), (900, 3, range(900))])
def test_a_batch_that_cannot_be_filled_ends_with_the_reason(num_rows, batch_size, broken):
    samples = with_sampler(num_rows, batch_size, broken=broken)
    with pytest.raises(ValueError, match=r"100 images in a row could not be read|No readable image is left"):
        samples.__getitems__(list(samples.sampler)[:batch_size])


def test_collator_gets_images_and_captions_and_the_batch_says_where_they_came_from():
    samples = CaptionedSamples(rows(10, broken={1}), seed=0).__getitems__([0, 1])
    batch = SampleCollator(lambda features: {"features": features})(samples)
    assert [set(feature) for feature in batch["features"]] == [{"image", "caption"}] * 2
    assert batch["sample_index"].tolist() == [0, samples[1]["index"]]
    assert list(batch["broken_images"]) == [1]


@pytest.mark.parametrize("augment", [None, SecondView()])
def test_each_image_is_shrunk_before_the_next_is_opened(opened_at_once, processor, augment):
    collator = CyCLIPDataCollator(processor)
    files = [{"image": _png(index), "caption": f"number {index}"} for index in range(8)]
    opened = opened_at_once(samples_module)
    shrunk = CaptionedSamples(files, 0, collator.min_image_size, augment, process_image=collator.process_image)
    batch = SampleCollator(collator)(shrunk.__getitems__([(0, index) for index in range(8)]))
    assert len(opened) == 8 and max(opened) <= 2
    # The pixels are those of images that reach the collator whole.
    whole = CaptionedSamples(files, 0, collator.min_image_size, augment)
    expected = SampleCollator(collator)(whole.__getitems__([(0, index) for index in range(8)]))
    assert batch.keys() == expected.keys() and ("augmented_pixel_values" in batch) == (augment is not None)
    for name in ("pixel_values", "input_ids", *(["augmented_pixel_values"] if augment else [])):
        assert torch.equal(batch[name], expected[name])


def _png(index):
    pixels = np.random.default_rng(index).integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_second_views_are_told_from_what_is_no_row_of_the_batch():
    samples = CaptionedSamples(rows(6), seed=0, augment=lambda image, caption, draws: (image, f"{caption}!"))
    batch = SampleCollator(
        lambda features: {
            "input_ids": torch.arange(len(features)),
            "captions": [feature["caption"] for feature in features],
            "row": np.arange(len(features)),
            "return_loss": True,
            "scale": torch.tensor(2.0),
            "position_ids": torch.arange(3)[None],
            "language": "en",
            "none": None,
        }
    )(samples.__getitems__([0, 1]))
    assert batch["input_ids"].tolist() == [0, 1] and batch["augmented_input_ids"].tolist() == [2, 3]
    assert batch["captions"] == ["0a", "1a"] and batch["augmented_captions"] == ["0a!", "1a!"]
    assert batch["row"].tolist() == [0, 1] and batch["augmented_row"].tolist() == [2, 3]
    assert batch["return_loss"] is True and batch["scale"] == 2 and batch["position_ids"].shape == (1, 3)
    assert batch["language"] == "en" and batch["none"] is None
    assert sum(name.startswith("augmented_") for name in batch) == 3


LEVELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
WITH_ALPHA = np.concatenate([LEVELS, LEVELS[:, :, :1]], axis=2)


@pytest.mark.parametrize(
    "array, expected",
    [
        (LEVELS, LEVELS),
        (LEVELS[:, :, :1], LEVELS[:, :, [0, 0, 0]]),
        (LEVELS[:, :, 0], LEVELS[:, :, [0, 0, 0]]),
        (WITH_ALPHA, LEVELS),
        (torch.from_numpy(LEVELS), LEVELS),
        (torch.from_numpy(LEVELS).permute(2, 0, 1), LEVELS),
        (torch.from_numpy(LEVELS).permute(2, 0, 1)[:1], LEVELS[:, :, [0, 0, 0]]),
        (LEVELS.astype(np.int64), LEVELS),
        (LEVELS.tolist(), LEVELS),
    ],
    ids=["rgb", "one channel", "grey", "alpha", "tensor", "channels first", "one channel first", "integers", "lists"],
)
@pytest.mark.parametrize("process_image", [None, lambda image: torch.from_numpy(np.array(image))])
def test_arrays_and_tensors_are_images(array, expected, process_image):
    rows = [{"image": array, "caption": "red"}] * 2
    image = CaptionedSamples(rows, seed=0, process_image=process_image)[1]["image"]
    assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    "array",
    [
        LEVELS / 255,
        torch.rand(3, 8, 8),
        LEVELS.astype(np.int16) + 99,
        LEVELS[None],
        LEVELS[:, :, :2],
        LEVELS[0, 0],
        [],
        [[1], [2, 3]],
    ],
    ids=["shares", "tensor of shares", "above 255", "four axes", "two channels", "one axis", "empty", "ragged"],
)
def test_arrays_that_are_no_image_end_in_one_line(array):
    with pytest.raises(ValueError, match=r"^The column `image` holds [^\n]{9,400}$"):
        CaptionedSamples([{"image": array, "caption": "red"}], seed=0)[0]


READY = {"pixel_values": torch.zeros(3, 16, 16), "input_ids": torch.ones(4)}


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([READY] * 8, "ready-made `pixel_values`"),
        (Dataset.from_list([{"pixel_values": [0.0], "input_ids": [1]}]), "ready-made `pixel_values`"),
        ([{"image": "a.png", "text": "red"}], r"no column `caption`, but image, text"),
        ([("a.png", "red")], "rows are no dictionaries, but such as a tuple"),
        (pandas.DataFrame({"image": ["a.png"], "caption": ["red"]}), r"`datasets\.Dataset\.from_pandas\(frame\)`"),
    ],
    ids=["pixels", "table of pixels", "another name", "tuples", "frame"],
)
def test_data_of_other_forms_are_refused_in_one_line(dataset, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        check_columns(dataset)


def png(colour):
    content = io.BytesIO()
    coloured_image(colour).save(content, "png")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "paths", "images"])
def test_what_a_refusal_of_frames_says_to_do_works(kind, tmp_path):
    images = [coloured_image(colour) for colour in COLOURS]
    if kind == "bytes":
        images = [png(colour) for colour in COLOURS]
    elif kind == "paths":
        for colour in COLOURS:
            coloured_image(colour).save(tmp_path / f"{colour}.png")
        images = [str(tmp_path / f"{colour}.png") for colour in COLOURS]
    frame = pandas.DataFrame({"image": images, "caption": [*COLOURS]})
    with pytest.raises(ValueError, match="A pandas frame") as refusal:
        check_columns(frame)
    table, of_images = re.findall("`(.*?)`", str(refusal.value))
    dataset = eval(of_images if kind == "images" else table, {"datasets": datasets, "frame": frame})
    check_columns(dataset)
    for rows in (dataset, frame.to_dict("records")):
        sample = CaptionedSamples(rows, seed=0)[1]
        assert (sample["image"].getpixel((0, 0)), sample["caption"]) == (
            coloured_image([*COLOURS][1]).getpixel((0, 0)),
            [*COLOURS][1],
        )


@pytest.mark.parametrize("captions", [["a", None], [["a"], []], [["a"], None], ["a", float("nan")], ["a", 5]])
def test_a_row_without_a_caption_is_named(captions):
    rows = [{"image": "a.png", "caption": caption} for caption in captions]
    with pytest.raises(ValueError, match=r"^Row 1 has the caption [^\n]* Leave out rows without one\.$"):
        CaptionedSamples(rows, seed=0)._sample(0, 1, None, captions[1])
    if captions[1] in (None, []):
        with pytest.raises(ValueError, match=r"^Row 1 has the caption (None|\[\])"):
            make_train_sampler(Dataset.from_list(rows), 2, seed=0, no_duplicate_captions=True)


def test_rows_of_other_forms_are_refused_as_they_are_read():
    class Ready(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return READY

    with pytest.raises(ValueError, match="ready-made `pixel_values`"):
        CaptionedSamples(Ready(), seed=0)[0]
