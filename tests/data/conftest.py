"""Fixtures of the data tests: a private cache for `datasets`, and the folder of real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Keep what `datasets` writes out of the user's cache, and keep it off the network."""
    import datasets

    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache / "downloads" / "extracted")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def real_data():
    folder = os.environ.get("RANKWEAVE_DATA")
    if not folder:
        pytest.skip("RANKWEAVE_DATA names no folder of real data sets")
    return Path(folder)
