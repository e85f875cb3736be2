"""Fixtures of the gateway's tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_world import World, make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Fake registry and bridge in this process; plugins and gateway as processes that the test starts."""
    async with make_world(tmp_path) as made:
        yield made
