"""Builds the emoji data from public npm packages: 12,294 pictures of 1,914 emoji in seven drawing styles.

    pip install resvg-py==0.5.0
    python benchmarks/emoji.py outputs/emoji

Downloads 166 MB from the npm registry (npm itself is not needed; the environment variable npm_config_registry names another
registry) and writes into the folder:

- `set`: all pictures. A split is a style; columns: image (64x64, JPEG, on white), name, keywords, group, subgroup, vendor,
  codepoint. No skin tones.
- `train`: four styles to train on. A caption is the name and a random part of the keywords; several drawings of it lie in a
  list. Flags and symbols are left out here and in the tests, since their pictures do not tell their names.
- `fluent_flat`, `noto_v1_blob`, `openmoji_black`: three other styles to test on, with the name as the label.
- `first_half` and `second_half`: `train`, cut in two by name; `first_half_test` and `second_half_test`: `fluent_flat` likewise.
- `drawings` and `drawings_test`: half of the line drawings of openmoji_black with captions, to tune a trained model on, and the
  other half with the name as the label.
"""

import argparse
import io
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from npm import download
from PIL import Image as PILImage
from PIL import ImageOps, ImageStat


try:
    from resvg_py import svg_to_bytes
except ModuleNotFoundError as error:
    raise SystemExit("The pictures in SVG are drawn by resvg-py: pip install resvg-py==0.5.0") from error


# Package: version, sha512 of its archive as the registry gives it ("integrity").
PACKAGES = {
    "emojibase-data": ("17.0.0", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="),
    "emoji-datasource-google": ("16.0.0", "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="),
    "emoji-datasource-twitter": ("16.0.0", "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ=="),
    "openmoji": ("17.0.0", "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w=="),
    "@lobehub/fluent-emoji-3d": ("1.1.0", "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="),
    "@iconify-json/fluent-emoji-flat": ("1.2.6", "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    "@iconify-json/noto-v1": ("1.2.5", "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
}  # fmt: skip
# Style: package, folder of the pictures in it (None: an Iconify collection), artist, licence of the pictures.
STYLES = {
    "noto": ("emoji-datasource-google", "img/google/64", "Google", "Apache-2.0"),
    "twemoji": ("emoji-datasource-twitter", "img/twitter/64", "Twitter and contributors", "CC BY 4.0"),
    "openmoji": ("openmoji", "color/svg", "OpenMoji", "CC BY-SA 4.0"),
    "openmoji_black": ("openmoji", "black/svg", "OpenMoji", "CC BY-SA 4.0"),
    "fluent_3d": ("@lobehub/fluent-emoji-3d", "assets", "Microsoft", "MIT"),
    "fluent_flat": ("@iconify-json/fluent-emoji-flat", None, "Microsoft", "MIT"),
    "noto_v1_blob": ("@iconify-json/noto-v1", None, "Google", "Apache-2.0"),
}
SIZE = 64
DRAWN_SIZE = 128
# Grey levels of a picture that shows nothing on white deviate by less: a white square, and a missing drawing.
BLANK = 3
# Published figures are of a set without these blobs, on which the renderer of that time (resvg-js 2.6.2) fails.
LEFT_OUT = {"noto_v1_blob": {"1F3CB", "1F3CB-FE0F-200D-2642-FE0F", "1F41E", "2615", "1F378", "1F685", "1F691"}}

TRAIN_STYLES = ["noto", "twemoji", "openmoji", "fluent_3d"]
TEST_STYLES = ["fluent_flat", "noto_v1_blob", "openmoji_black"]
LEFT_OUT_GROUPS = {"flags", "symbols"}
CAPTIONS_PER_IMAGE = 16


def read_emoji(files: dict[str, bytes]) -> tuple[list[dict], list[str]]:
    """The emoji of emojibase-data in Unicode's order, as rows without pictures, and the names of their groups."""
    meta = json.loads(files["meta/groups.json"])
    groups = [name for name in meta["groups"].values() if name != "component"]
    emoji = [entry for entry in json.loads(files["en/data.json"]) if "group" in entry]
    rows = [
        {
            "name": entry["label"],
            "keywords": ", ".join(entry.get("tags", [])),
            "group": meta["groups"][str(entry["group"])],
            "subgroup": meta["subgroups"][str(entry["subgroup"])],
            "codepoint": entry["hexcode"],
        }
        for entry in sorted(emoji, key=lambda entry: entry["order"])
    ]
    return [row for row in rows if row["group"] in groups], groups


def without_selector(codepoint: str) -> str:
    # Packages disagree on where the variation selector belongs.
    return codepoint.upper().replace("-FE0F", "")


def pictures_in_folder(files: dict[str, bytes], folder: str) -> Callable[[dict], bytes | None]:
    """From a row of `read_emoji` to its picture in the folder, if there is one."""
    paths = (PurePosixPath(path) for path in sorted(files))
    pictures = {without_selector(path.stem): files[str(path)] for path in paths if str(path.parent) == folder}
    return lambda row: pictures.get(without_selector(row["codepoint"]))


def pictures_of_iconify(files: dict[str, bytes]) -> Callable[[dict], bytes | None]:
    """From a row of `read_emoji` to its picture, by codepoint where the collection lists them, or else by name."""
    collection = json.loads(files["icons.json"])
    icons = collection["icons"]
    by_codepoint = {without_selector(key): icon for key, icon in json.loads(files["chars.json"]).items()}
    # Other aliases mirror a picture.
    aliases = {name: alias["parent"] for name, alias in collection["aliases"].items() if alias.keys() == {"parent"}}

    def picture(row: dict) -> bytes | None:
        if by_codepoint:
            name = by_codepoint.get(without_selector(row["codepoint"]))
        else:
            name = re.sub(r"[^a-z0-9]+", "-", row["name"].lower().replace("’", "")).strip("-")
        icon = icons.get(aliases.get(name, name))
        if icon is None:
            return None
        width, height = (icon.get(side, collection[side]) for side in ("width", "height"))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        return svg.encode()

    return picture


def draw(picture: bytes) -> PILImage.Image:
    """A picture (SVG, or an image file) on white, in RGB, `SIZE` pixels wide and high."""
    if picture.lstrip().startswith(b"<"):
        picture = svg_to_bytes(
            svg_string=picture.decode(), width=DRAWN_SIZE, background="#ffffff", skip_system_fonts=True
        )
    image = PILImage.open(io.BytesIO(bytes(picture))).convert("RGBA")
    white = PILImage.new("RGBA", image.size, "white")
    image = PILImage.alpha_composite(white, image).convert("RGB")
    return ImageOps.pad(image, (SIZE, SIZE), PILImage.Resampling.LANCZOS, color="white")


def build_style(style: str, rows: list[dict], groups: list[str], files: dict[str, bytes]) -> Dataset:
    folder = STYLES[style][1]
    find = pictures_of_iconify(files) if folder is None else pictures_in_folder(files, folder)
    drawn = []
    for row in rows:
        picture = find(row)
        if picture is None or row["codepoint"] in LEFT_OUT.get(style, ()):
            continue
        image = draw(picture)
        if ImageStat.Stat(image.convert("L")).stddev[0] < BLANK:
            continue
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=92, subsampling="4:4:4")
        drawn.append({"image": {"bytes": jpeg.getvalue(), "path": None}, "vendor": style, **row})
    features = Features(
        {
            "image": Image(),
            "name": Value("string"),
            "keywords": Value("string"),
            "group": ClassLabel(names=groups),
            "subgroup": Value("string"),
            "vendor": ClassLabel(names=list(STYLES)),
            "codepoint": Value("string"),
        }
    )
    return Dataset.from_list(drawn, features=features).select_columns(list(features))


def readme(styles: DatasetDict) -> str:
    table = "\n".join(
        f"| {style} | {len(styles[style]):,} | {package} {PACKAGES[package][0]} | {artist} | {licence} |"
        for style, (package, _, artist, licence) in STYLES.items()
    )
    return f"""---
license: [apache-2.0, cc-by-4.0, cc-by-sa-4.0, mit]
---

# Emoji in seven drawing styles, with names and keywords

{sum(map(len, styles.values())):,} images, {SIZE}x{SIZE} JPEG on white, without skin tones. A split is a style.

| split | images | from (npm) | pictures by | licence of the pictures |
|---|---|---|---|---|
{table}

Names, keywords and groups: emojibase-data {PACKAGES["emojibase-data"][0]} (MIT), from Unicode CLDR (Unicode License). The \
pictures were scaled and put on white.
"""


def captions(name: str, keywords: str, codepoint: str, vendor: int) -> dict[str, list[str]]:
    generator = random.Random(f"{codepoint} {vendor}")
    words = [word for word in keywords.split(", ") if word and word != name]
    drawn = [
        generator.sample(words, generator.randint(0, len(words))) if words else [] for _ in range(CAPTIONS_PER_IMAGE)
    ]
    return {"captions": [", ".join([name, *part]) for part in drawn]}


def training_and_test_sets(styles: DatasetDict) -> dict[str, Dataset]:
    groups = styles["noto"].features["group"].names
    styles = styles.filter(lambda group: groups[group] not in LEFT_OUT_GROUPS, input_columns="group")
    names = ClassLabel(names=sorted({name for style in styles.values() for name in style["name"]}))
    train = concatenate_datasets([styles[style] for style in TRAIN_STYLES])
    train = train.map(captions, input_columns=["name", "keywords", "codepoint", "vendor"])
    sets = {"train": train.select_columns(["image", "captions"])}
    in_first_half = set(names.names[::2])
    halves_of_names = {
        "first_half": lambda name: name in in_first_half,
        "second_half": lambda name: name not in in_first_half,
    }
    for half, belongs in halves_of_names.items():
        sets[half] = train.filter(belongs, input_columns="name").select_columns(["image", "captions"])
    for style in TEST_STYLES:
        labelled = styles[style].rename_column("name", "label").cast_column("label", names)
        sets[style] = labelled.select_columns(["image", "label", "group"])
    for half, belongs in halves_of_names.items():
        of_half = [row for row, name in enumerate(styles["fluent_flat"]["name"]) if belongs(name)]
        sets[f"{half}_test"] = sets["fluent_flat"].select(of_half)
    drawings = styles["openmoji_black"]
    halves = range(0, len(drawings), 2), range(1, len(drawings), 2)
    tuned_on = drawings.select(halves[0]).map(captions, input_columns=["name", "keywords", "codepoint", "vendor"])
    sets["drawings"] = tuned_on.select_columns(["image", "captions"])
    sets["drawings_test"] = sets["openmoji_black"].select(halves[1])
    return sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="folder to write to")
    args = parser.parse_args()

    rows, groups = read_emoji(download("emojibase-data", *PACKAGES["emojibase-data"]))
    styles = DatasetDict()
    (args.target / "set" / "data").mkdir(parents=True, exist_ok=True)
    for style, (package, *_) in STYLES.items():
        styles[style] = build_style(style, rows, groups, download(package, *PACKAGES[package]))
        styles[style].to_parquet(args.target / "set" / "data" / f"{style}-00000-of-00001.parquet")
        print(f"set, {style}: {len(styles[style])} images")
    (args.target / "set" / "README.md").write_text(readme(styles), encoding="utf-8")

    for name, dataset in training_and_test_sets(styles).items():
        (args.target / name).mkdir(exist_ok=True)
        split = "train" if "captions" in dataset.column_names else "test"
        dataset.to_parquet(args.target / name / f"{split}.parquet")
        print(f"{name}: {len(dataset)} images")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
