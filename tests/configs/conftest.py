"""The config files, loaded as `kdist train` loads them, and their modules forgotten afterwards."""

import sys
from pathlib import Path

import pytest

from kdist import config as configs

DIRECTORY = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Config files are modules of their own names: none may be left to another test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for path in DIRECTORY.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def load():
    """``load(name, **fields)``: the config of a file and the module that the file is."""

    def load(name, **fields):
        config = configs.load(str(DIRECTORY / f"{name}.py"))
        return config.replace(**fields), sys.modules[type(config).__module__]

    return load
