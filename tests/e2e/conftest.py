"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

import otlp_sink
from suite_rig import RunningSuite, start_suite, suite_below
from tinymlaas_client import AsyncClient


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    """One suite for all tests that leave it as they found it."""
    state = tmp_path_factory.mktemp("suite")
    with otlp_sink.running() as sink:
        try:
            yield start_suite(state, sink)
        finally:
            suite_below(state).stop()


@pytest.fixture
async def client(running: RunningSuite) -> AsyncIterator[AsyncClient]:
    """A connection to the shared suite."""
    async with running.client() as connected:
        yield connected
