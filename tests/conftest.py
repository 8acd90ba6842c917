"""Fixtures: real files beside the checkout, small synthetic LoRAs."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.forks import Run, processes

DATA = Path(__file__).parents[1].parent / "shared" / "data"
settings.register_profile(
    "house", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share",
        metavar="FOLDER",
        type=Path,
        help="leave out the files that another session with this FOLDER has begun",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Say that another session does this one, where one does."""
    folder = item.config.getoption("--share")
    return None if folder is None or _begun_here(folder, item.path.name) else True


@functools.cache
def _begun_here(folder: Path, name: str) -> bool:
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not DATA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("the folder shared/data must lie beside the checkout in CI")
        pytest.skip("the folder shared/data with real LoRA files is not beside this checkout")
    return DATA


@pytest.fixture(scope="session")
def loras(shared_data: Path) -> Path:
    return shared_data / "loras"


@pytest.fixture(scope="session")
def keys(shared_data: Path) -> Path:
    return shared_data / "keys"


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a piece of code in several processes at once; give their exit codes."""
    with processes(tmp_path_factory.mktemp("warm")) as run:
        yield run


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The synthetic sample LoRAs, written once."""
    from lib_merge.samples import write_samples

    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def few(tmp_path: Path) -> list[Path]:
    """Two LoRAs of two modules: merged in no time."""
    from tests.factories import NAMES, write_lora

    (tmp_path / "sources").mkdir()
    return [
        write_lora(tmp_path / "sources" / f"{name}.safetensors", seed=ord(name), names=NAMES[:2], conv=False)
        for name in "ab"
    ]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A name to save under, in a folder of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.safetensors"
