import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from modeling_cyclip.evaluation import ranking
from tests.conftest import COLOURS, coloured_image


NAMES = list(COLOURS)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Keeps what `load_dataset` prepares out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(params=[2**25, 50], ids=["whole", "chunked"])
def chunks(request, monkeypatch):
    """Similarities once in one chunk, once in chunks of a few rows."""
    monkeypatch.setattr(ranking, "MAX_SIMILARITIES", request.param)


@pytest.fixture
def checkpoint(model, processor, tmp_path):
    """A folder of a tiny CLIP checkpoint."""
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shifted_folder(data_folder, tmp_path_factory):
    """A second folder, of one split and fewer columns: the faded images as its test split."""
    folder = tmp_path_factory.mktemp("faded")
    faded = Dataset.from_parquet(f"{data_folder}/data/faded-00000-of-00001.parquet")
    faded.select_columns(["img", "label"]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """
    A `datasets` folder of plain colours: 28 test, 40 train and 9 faded images, with ClassLabel, string label, a string
    that no two share, superclass and two captions.
    """
    folder = tmp_path_factory.mktemp("colours")
    features = Features(
        {
            "img": Image(),
            "label": ClassLabel(names=["red", "green", "blue", "lemon_yellow"]),
            "name": Value("string"),
            "code": Value("string"),
            "group": ClassLabel(names=["warm", "cold"]),
            "captions": List(Value("string")),
        }
    )
    for split, size, offset in (("test", 28, 0), ("train", 40, 7), ("faded", 9, 20)):
        rows = [(row % 4, offset + row // 4) for row in range(size)]
        columns = {
            "img": [coloured_image(NAMES[label], level) for label, level in rows],
            "label": [label for label, _ in rows],
            "name": [f"{NAMES[label]} paint" for label, _ in rows],
            "code": [f"{NAMES[label]} {level}" for label, level in rows],
            "group": [0 if NAMES[label] in ("red", "yellow") else 1 for label, _ in rows],
            "captions": [[f"{NAMES[label]} {level}", f"shade {level} of {NAMES[label]}"] for label, level in rows],
        }
        dataset = Dataset.from_dict(columns, features=features)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)
