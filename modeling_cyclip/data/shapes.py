"""Draws the quickstart's data: captioned pictures of shapes. Some pairs of a colour and a shape are kept for the test.

    python -m modeling_cyclip.data.shapes outputs/quickstart/data

The training pictures show every colour and every shape, but never a held-out pair, such as an orange diamond. To name a
picture of such a pair, a model must put the two together.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw


COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (240, 210, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
}
# Corner points of each shape in a unit square; the circle is drawn as an ellipse.
POLYGONS = {
    "square": [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)],
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "cross": [
        (0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65),
        (0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35),
    ],
    "arrow": [(0.5, 0), (1, 0.5), (0.68, 0.5), (0.68, 1), (0.32, 1), (0.32, 0.5), (0, 0.5)],
}  # fmt: skip
SHAPES = ["circle", *POLYGONS]
SIZES = {"small": (9, 12), "medium": (13, 17), "large": (18, 23)}
TEXTURES = ["plain", "striped", "hollow"]
BACKGROUNDS = {"white": (250, 250, 250), "grey": (190, 190, 190), "black": (25, 25, 25), "pink": (250, 205, 215)}
PHRASINGS = [
    "a {colour} {shape}",
    "a photo of a {colour} {shape}",
    "a {size} {colour} {shape} on a {background} background",
    "a {texture} {colour} {shape} at the {position}",
    "this picture shows a {shape} that is {colour}",
    "{colour} {shape}, {texture}, {position}, {background} background",
]
SIDE = 32
# Every colour and every shape once.
HELD_OUT = set(zip(COLOURS, [*SHAPES[2:], *SHAPES[:2]], strict=True))


def draw(scene: dict[str, str], generator: random.Random) -> PILImage.Image:
    """A picture of `SIDE` pixels squared. The generator decides what the scene leaves open."""
    image = PILImage.new("RGB", (SIDE, SIDE), BACKGROUNDS[scene["background"]])
    side = generator.randint(*SIZES[scene["size"]])
    vertical, horizontal = scene["position"].split()
    slack = SIDE - 1 - side
    left = round(slack * {"left": 0.1, "middle": 0.5, "right": 0.9}[horizontal])
    top = round(slack * {"top": 0.1, "centre": 0.5, "bottom": 0.9}[vertical])

    mask = PILImage.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(mask)
    outline = {"outline": 255, "width": 2} if scene["texture"] == "hollow" else {"fill": 255}
    if scene["shape"] == "circle":
        pen.ellipse((left, top, left + side, top + side), **outline)
    else:
        pen.polygon([(left + x * side, top + y * side) for x, y in POLYGONS[scene["shape"]]], **outline)
    if scene["texture"] == "striped":
        for y in range(top + 2, top + side, 4):
            pen.line((0, y, SIDE, y), fill=0)
    shade = [min(255, max(0, value + generator.randint(-20, 20))) for value in COLOURS[scene["colour"]]]
    image.paste(tuple(shade), mask=mask)
    return image


def scenes(
    pairs: list[tuple[str, str]], num_scenes: int, seed: int
) -> Iterator[tuple[dict[str, str], PILImage.Image]]:
    """Scenes and their pictures: the given pairs of colour and shape in turn, everything else at random."""
    generator = random.Random(seed)
    for number in range(num_scenes):
        colour, shape = pairs[number % len(pairs)]
        scene = {
            "colour": colour,
            "shape": shape,
            "size": generator.choice(list(SIZES)),
            "texture": generator.choice(TEXTURES),
            "background": generator.choice(list(BACKGROUNDS)),
            "position": f"{generator.choice(['top', 'centre', 'bottom'])} {generator.choice(['left', 'middle', 'right'])}",
        }
        yield scene, draw(scene, generator)


def write_shapes(folder: Path, num_train: int = 6000, num_test: int = 1200) -> None:
    """Writes `train` (columns image, captions) and `test` (image, label; held-out pairs only) as `datasets` folders."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    seen = [pair for pair in pairs if pair not in HELD_OUT]
    train = [
        {"image": image, "captions": [phrasing.format(**scene) for phrasing in PHRASINGS]}
        for scene, image in scenes(seen, num_train, seed=0)
    ]
    names = [f"{colour} {shape}" for colour, shape in pairs]
    test = [
        {"image": image, "label": names.index(f"{scene['colour']} {scene['shape']}")}
        for scene, image in scenes(sorted(HELD_OUT), num_test, seed=1)
    ]
    for split, rows, features in (
        ("train", train, Features(image=Image(), captions=List(Value("string")))),
        ("test", test, Features(image=Image(), label=ClassLabel(names=names))),
    ):
        (folder / split).mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(folder / split / f"{split}.parquet")
    test[0]["image"].save(folder / "example.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write `train`, `test` and an example")
    folder = parser.parse_args().folder
    write_shapes(folder)
    print(f"Wrote {folder}: 6,000 training pictures, 1,200 test pictures of {len(HELD_OUT)} held-out pairs.")


if __name__ == "__main__":
    main()
