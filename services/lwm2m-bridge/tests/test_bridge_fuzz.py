"""Hostile bytes: some thousand mutations of valid messages for every decoder; `make fuzz` does it with a million."""

from __future__ import annotations

import pytest

from lwm2m_fuzz import Target, fuzz, targets

INPUTS = 400


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_decoder_reads_or_refuses_whatever_comes(target: Target) -> None:
    """DO-SEC-002: no other error than its own, no hang, no memory without end."""
    report = fuzz(target, INPUTS, seed=1)
    assert report.failures == []
    assert report.inputs == INPUTS
    # Mutations that are all refused at the first byte would show nothing.
    assert len(target.seeds) <= report.accepted < INPUTS or not target.allowed


def test_a_decoder_that_fails_is_found() -> None:
    def broken(data: bytes) -> None:
        if b"\xff" in data:
            raise IndexError

    assert fuzz(Target("broken", broken, (b"valid",)), INPUTS, seed=1).failures
