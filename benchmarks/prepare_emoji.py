"""Makes a training set and shifted test sets of the emoji images.

    python benchmarks/build_emoji.py outputs/emoji/set
    python benchmarks/prepare_emoji.py outputs/emoji/set outputs/emoji

Trains on four styles: a caption is the name and a random part of the keywords, several drawings of which lie in a list.
Tests on three other styles, by name over all names. Flags and symbols, which cannot be told from their pictures, are out.
"""

import argparse
import random
from pathlib import Path

from datasets import ClassLabel, concatenate_datasets, load_dataset


TRAIN_STYLES = ["noto", "twemoji", "openmoji", "fluent_3d"]
TEST_STYLES = ["fluent_flat", "noto_v1_blob", "openmoji_black"]
LEFT_OUT = {"flags", "symbols"}
CAPTIONS_PER_IMAGE = 16


def captions(name: str, keywords: str, codepoint: str, vendor: int) -> dict[str, list[str]]:
    generator = random.Random(f"{codepoint} {vendor}")
    words = [word for word in keywords.split(", ") if word and word != name]
    drawn = [
        generator.sample(words, generator.randint(0, len(words))) if words else [] for _ in range(CAPTIONS_PER_IMAGE)
    ]
    return {"captions": [", ".join([name, *part]) for part in drawn]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Folder of the emoji set, as build_emoji.py writes it.")
    parser.add_argument("target", type=Path, help="Folder to write to.")
    args = parser.parse_args()

    styles = load_dataset(args.source)
    groups = styles["noto"].features["group"].names
    styles = styles.filter(lambda group: groups[group] not in LEFT_OUT, input_columns="group")
    names = ClassLabel(names=sorted({name for style in styles.values() for name in style["name"]}))

    columns = ["name", "keywords", "codepoint", "vendor"]
    train = concatenate_datasets([styles[style] for style in TRAIN_STYLES])
    train = train.map(captions, input_columns=columns).select_columns(["image", "captions"])
    sets = {"train": train}
    for style in TEST_STYLES:
        labelled = styles[style].rename_column("name", "label").cast_column("label", names)
        sets[style] = labelled.select_columns(["image", "label", "group"])
    for name, dataset in sets.items():
        (args.target / name).mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(args.target / name / f"{'train' if name == 'train' else 'test'}.parquet")
        print(f"{name}: {len(dataset)} images")
    print(f"{names.num_classes} names")


if __name__ == "__main__":
    main()
