"""The random resized crop: which part of an image it takes, what reaches the model, and that it is the same whoever makes it."""

import io
import math
import os
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, CLIPProcessor, SiglipImageProcessor
from transformers.utils import is_torchvision_available

from modeling_cyclip import CyCLIPDataCollator, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.commands.train import parse_arguments
from modeling_cyclip.data.augment import SecondView, random_part
from modeling_cyclip.data.captions import DataArguments
from modeling_cyclip.data.samples import CaptionedSamples
from tests.distributed import run_distributed


HALF = 0.5, 1.0


def places(width, height):
    """An image whose red says the column and whose green the row of a pixel."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2)


def box(part):
    """Where a part of `places` was."""
    (left, top, _), (right, bottom, _) = np.asarray(part)[[0, -1], [0, -1]].tolist()
    assert np.array_equal(part, places(256, 256)[top : bottom + 1, left : right + 1])
    return left, top, right + 1, bottom + 1


def boxes(width, height, area, number=2000):
    image = places(width, height)
    return np.array([box(random_part(image, area, Random(seed))) for seed in range(number)])


@pytest.mark.parametrize("size", [(200, 200), (240, 180), (180, 240), (200, 160)])
@pytest.mark.parametrize("area", [(0.9, 1.0), (0.4, 1.0), (0.3, 0.3)])
def test_area_and_aspect_ratio_stay_within_bounds(size, area):
    left, top, right, bottom = boxes(*size, area).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= size[0] and bottom.max() <= size[1]
    width, height = right - left, bottom - top
    # A side is rounded by half a pixel of 90 at least.
    share, ratio = width * height / math.prod(size), width / height
    assert area[0] * 0.99 <= share.min() and share.max() <= area[1] * 1.01
    assert 3 / 4 * 0.99 <= ratio.min() and ratio.max() <= 4 / 3 * 1.01


def test_what_always_fits_is_drawn_uniformly():
    left, top, right, bottom = boxes(250, 250, (0.1, 0.4)).T
    width, height = right - left, bottom - top
    drawn = {
        "area": (width * height / 250**2 - 0.1) / 0.3,
        "ratio": np.log(width / height) / (2 * math.log(4 / 3)) + 0.5,
        "column": left / (250 - width),
        "row": top / (250 - height),
    }
    for name, values in drawn.items():
        # Kolmogorov and Smirnov: of uniform draws, one set in a million is as far off; the rest is rounding to pixels.
        off = np.abs(np.sort(values) - np.arange(1, 2001) / 2000).max()
        assert off < 0.06 + 0.01, name
    assert np.abs(np.corrcoef(list(drawn.values())) - np.eye(4)).max() < 0.1


def test_of_an_image_in_which_nothing_fits_it_is_the_middle():
    assert set(map(tuple, boxes(240, 135, (0.9, 1.0), 50))) == {(30, 0, 210, 135)}
    assert set(map(tuple, boxes(135, 240, (0.9, 1.0), 50))) == {(0, 30, 135, 210)}


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_thin_images_have_parts(size):
    assert all(np.array(random_part(places(*size), (0.01, 1.0), Random(seed))).size for seed in range(50))


def test_an_image_and_its_array_give_the_same_part():
    image = places(120, 90)
    for seed in range(20):
        of_image = random_part(Image.fromarray(image), HALF, Random(seed))
        assert np.array_equal(np.asarray(of_image), random_part(image, HALF, Random(seed)))


def noise(number, size=(40, 30)):
    levels = np.random.default_rng(number).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def rows():
    captions = [[f"red number {number}", f"a blue picture, shade {number}"] for number in range(32)]
    return [{"image": encoded(noise(number), "PNG"), "caption": caption} for number, caption in enumerate(captions)]


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {"quality": 95})])
@pytest.mark.parametrize("size", [(40, 30), (16, 16), (9, 12), (200, 150)])
def test_pixels_are_those_that_pillow_crops_and_resizes(processor, kind, options, size):
    files = [encoded(noise(number, size), kind, **options) for number in range(8)]
    rows = [{"image": file, "caption": "red"} for file in files]
    # The parts of images that tell them, drawn by the same keys.
    marked = [{"image": Image.fromarray(places(*size)), "caption": "red"} for _ in files]
    collator = CyCLIPDataCollator(processor)
    samples = CaptionedSamples(rows, 3, process_image=collator.process_image, random_resized_crop=HALF)
    parts = CaptionedSamples(marked, 3, random_resized_crop=HALF)
    for key in [(epoch, index) for epoch in range(2) for index in range(8)]:
        with Image.open(io.BytesIO(files[key[1]]["bytes"])) as image:
            expected = image.convert("RGB").crop(box(parts[key]["image"])).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = samples[key]["image"]
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 16)
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, dtype=int)).max() <= 2


@pytest.mark.parametrize(
    "image_processor",
    [
        SiglipImageProcessor(size={"height": 16, "width": 16}, resample=Image.Resampling.BICUBIC),
        BitImageProcessor(size={"shortest_edge": 20}, crop_size=16),
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, resample=Image.Resampling.LANCZOS),
    ],
    ids=["no crop", "another kind", "another filter"],
)
def test_another_processor_stretches_the_part_itself(processor, rows, image_processor):
    collator = CyCLIPDataCollator(CLIPProcessor(image_processor, processor.tokenizer))
    samples = CaptionedSamples(rows, 0, process_image=collator.process_image, random_resized_crop=HALF)
    part = CaptionedSamples(rows, 0, random_resized_crop=HALF)[1, 5]["image"]
    assert part.size != (40, 30)
    levels = np.asarray(part.resize((16, 16), image_processor.resample)) / 255
    expected = (levels - image_processor.image_mean) / image_processor.image_std
    difference = np.abs(samples[1, 5]["image"].permute(1, 2, 0).numpy() - expected)
    if is_torchvision_available():  # it rounds a few pixels to the next level
        difference *= image_processor.image_std
        assert difference.max() < 1.01 / 255 and difference.mean() < 0.1 / 255
    else:
        assert difference.max() < 1e-5


@pytest.mark.parametrize(
    "size, area, expected",
    [
        ((640, 512), None, (160, 128)),  # twice 64
        ((640, 512), (0.25, 1.0), (320, 256)),  # a quarter of it has the pixels that the whole had above
        ((640, 512), (0.9, 1.0), (320, 256)),  # 128 / sqrt(0.9) is more than 128 ...
        ((680, 544), (0.9, 1.0), (170, 136)),  # ... and less than 136
    ],
)
def test_a_jpeg_is_decoded_with_enough_pixels_for_the_smallest_part(size, area, expected):
    rows = [{"image": encoded(noise(0, size), "JPEG"), "caption": "red"}]
    opened = []
    CaptionedSamples(
        rows,
        seed=0,
        min_image_size=128,
        augment=lambda image, caption, draws: (opened.append(image.size), (image, caption))[1],
        random_resized_crop=area,
    )[0, 0]
    assert opened == [expected]


def test_parts_depend_on_seed_epoch_and_row_alone():
    def part(samples, key):
        return box(samples[key]["image"])

    marked = [{"image": Image.fromarray(places(90, 90)), "caption": "red"}] * 6
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    samples = CaptionedSamples(marked, 0, random_resized_crop=HALF)
    parts = [part(samples, key) for key in keys]
    assert [part(samples, key) for key in reversed(keys)] == parts[::-1]
    assert len(set(parts)) == len(keys)
    assert part(CaptionedSamples(marked, 1, random_resized_crop=HALF), keys[0]) != parts[0]


def test_captions_and_second_views_are_those_without_it(processor, rows):
    options = {"process_image": CyCLIPDataCollator(processor).process_image, "augment": SecondView()}
    whole, parts = (CaptionedSamples(rows, 0, random_resized_crop=area, **options) for area in (None, HALF))
    for key in [(epoch, index) for epoch in range(2) for index in range(8)]:
        whole_sample, part_sample = whole[key], parts[key]
        for name in ("caption", "augmented_caption"):
            assert part_sample[name] == whole_sample[name]
        assert torch.equal(part_sample["augmented_image"], whole_sample["augmented_image"])
        assert not torch.equal(part_sample["image"], whole_sample["image"])


class Recording(CyCLIPTrainer):
    """Keeps the pixels of each step."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.pixels = [*getattr(self, "pixels", []), inputs["pixel_values"]]
        return super().training_step(model, inputs, *args, **kwargs)


def make_trainer(model, processor, rows, folder, area=HALF, data=None, batch_size=8, **options):
    arguments = CyCLIPTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        save_strategy="steps" if "save_steps" in options else "no",
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    return Recording(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        random_resized_crop=area,
        run_arguments={"data": data},
    )


def batches(trainer):
    """The pixels of two epochs of the whole batches of all processes."""
    loader, found = trainer.get_train_dataloader(), []
    for epoch in range(2):
        loader.set_epoch(epoch)
        found += [trainer.accelerator.gather(batch["pixel_values"]) for batch in loader]
    return torch.stack(found)


def test_workers_make_the_same_batches_and_epochs_others(model, processor, rows, tmp_path):
    expected = batches(make_trainer(model, processor, rows, tmp_path))
    assert expected.shape == (8, 8, 3, 16, 16)
    images = expected.flatten(0, 1)
    assert len(torch.unique(images, dim=0)) == len(images) == 64
    for num_workers in (1, 2):
        trainer = make_trainer(model, processor, rows, tmp_path, dataloader_num_workers=num_workers)
        assert torch.equal(batches(trainer), expected)


def batches_of_two(rank, world_size, *arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # the process group is there already
    return batches(make_trainer(*arguments, batch_size=4, ddp_backend="gloo")).numpy()


def test_two_processes_make_the_batches_of_one(model, processor, rows, tmp_path):
    expected = batches(make_trainer(model, processor, rows, tmp_path)).numpy()
    for made in run_distributed(batches_of_two, 2, tmp_path, model, processor, rows, tmp_path):
        assert np.array_equal(made, expected)


def test_a_resumed_training_sees_the_same_and_another_value_is_named(model, processor, rows, tmp_path, caplog):
    data = DataArguments(train_file=["pairs.csv"], random_resized_crop=[*HALF])
    options = {"max_steps": 7, "save_steps": 5, "logging_steps": 5}
    whole = make_trainer(model, processor, rows, tmp_path, data=data, **options)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-5")
    resumed = make_trainer(model, processor, rows, tmp_path, data=data, **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert torch.equal(torch.stack(resumed.pixels), torch.stack(whole.pixels[5:]))
    assert "was another" not in caplog.text
    data = DataArguments(train_file=["pairs.csv"])
    make_trainer(model, processor, rows, tmp_path, None, data, **options).train(resume_from_checkpoint=checkpoint)
    assert "random_resized_crop was [0.5, 1.0] and is None (None holds)" in caplog.text


def test_evaluations_see_whole_images(model, processor, rows, tmp_path):
    whole, parts = (make_trainer(model, processor, rows, tmp_path, area) for area in (None, HALF))
    seen = [torch.cat([batch["pixel_values"] for batch in each.get_eval_dataloader()]) for each in (whole, parts)]
    assert torch.equal(*seen)
    assert whole.evaluate()["eval_loss"] == parts.evaluate()["eval_loss"]
    assert not torch.equal(batches(whole), batches(parts))


WRONG = [[0.0, 1.0], [-0.5, 1.0], [0.5, 1.1], [1.0, 0.9], [0.9], [0.5, 0.7, 0.9], [math.nan, 1.0], [90.0, 100.0]]


@pytest.mark.parametrize("area", [*WRONG, 0.9])
def test_wrong_values_end_in_one_line_before_the_training(model, processor, rows, tmp_path, area):
    with pytest.raises(ValueError, match=r"^`random_resized_crop` takes two numbers, [^\n]*$"):
        make_trainer(model, processor, rows, tmp_path, area)


@pytest.mark.parametrize("area", WRONG)
def test_wrong_values_of_the_command_end_in_one_line(capsys, area):
    argv = ["--model_size", "nano", "--train_file", "a.csv", "--output_dir", "out", "--random_resized_crop"]
    with pytest.raises(SystemExit):
        parse_arguments([*argv, *map(str, area)])
    assert "error: `random_resized_crop` takes two numbers" in capsys.readouterr().err
    assert parse_arguments([*argv, "0.9", "1"])[1].random_resized_crop == [0.9, 1.0]
