"""Fixtures: real files beside the checkout, small synthetic LoRAs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

DATA = Path(__file__).parents[1].parent / "shared" / "data"
settings.register_profile(
    "house", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile("house")


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
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The synthetic sample LoRAs, written once."""
    from lib_merge.samples import write_samples

    return write_samples(tmp_path_factory.mktemp("samples"))
