import pytest
from datasets import config


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The cache of `datasets`, an empty one for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", folder)
    return folder
