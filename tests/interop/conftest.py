"""Real LwM2M peers for the tests of this folder, which `make test-interop` runs."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "services/lwm2m-bridge/tests"))
sys.path.insert(0, str(Path(__file__).parent))

from dtls_processes import build_programs  # noqa: E402
from leshan_peer import Leshan, Peers, build_leshan, write_definitions  # noqa: E402
from secured_bridge import Secured, secured_bridge  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests out of runs of the whole tree: they need Java, Maven and, the first time, a network."""
    if os.environ.get("TINYMLAAS_INTEROP") == "1":
        return
    skip = pytest.mark.skip(reason="run by `make test-interop`")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def leshan_build() -> Leshan:
    """The Java programs, built; a skip that says what is missing where that is not possible."""
    return build_leshan(ROOT)


@pytest.fixture
async def peers(leshan_build: Leshan, tmp_path: Path) -> AsyncIterator[Peers]:
    """Starts Leshan clients and servers, and ends them."""
    models = tmp_path / "models"
    write_definitions(models)
    started = Peers(leshan_build, models)
    try:
        yield started
    finally:
        await started.close()


@pytest.fixture(scope="session")
def programs() -> Path:
    """Folder with the Go programs; a skip where Go is not."""
    return build_programs(ROOT)


@pytest.fixture
async def secured(programs: Path, tmp_path: Path) -> AsyncIterator[Secured]:
    """A bridge that serves only DTLS sessions, behind its front."""
    async with secured_bridge(programs, tmp_path) as served:
        yield served
