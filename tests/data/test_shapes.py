"""The quickstart's pictures."""

from datasets import load_dataset

from modeling_cyclip.data.shapes import COLOURS, HELD_OUT, SHAPES, write_shapes


def test_held_out_pairs_are_in_the_test_only(tmp_path):
    write_shapes(tmp_path, num_train=120, num_test=12)
    train = load_dataset(str(tmp_path / "train"), split="train")
    test = load_dataset(str(tmp_path / "test"), split="test")
    assert len(train) == 120 and len(test) == 12
    captions = " | ".join(caption for captions in train["captions"] for caption in captions)
    assert not any(f"{colour} {shape}" in captions for colour, shape in HELD_OUT)
    assert all(word in captions for word in (*COLOURS, *SHAPES))
    names = test.features["label"].names
    assert {tuple(names[label].split()) for label in test["label"]} == HELD_OUT
    assert len(names) == len(COLOURS) * len(SHAPES)


def test_every_colour_and_shape_is_held_out_once():
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS) and {shape for _, shape in HELD_OUT} == set(SHAPES)
