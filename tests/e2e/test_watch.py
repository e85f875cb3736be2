"""`tinymlaas deploy watch`: waves and devices of a rollout as they change, on a terminal and as lines of JSON."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from suite_rig import DEADLINE_SECONDS, ROOT, ZOO, RunningSuite, eventually
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.policies import rollout_policy

pytestmark = pytest.mark.xdist_group("suite")


class Watcher:
    """A running `tinymlaas deploy watch` and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self._process = process
        self._output = output
        self._read = bytearray()
        self._thread = threading.Thread(target=self._collect, name="output of deploy watch")
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                data = os.read(self._output, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal whose other end was closed
                    raise
                return
            if not data:
                return
            self._read += data

    @property
    def text(self) -> str:
        """All that was written."""
        return bytes(self._read).decode(errors="replace")

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The whole lines of JSON."""
        return [json.loads(line) for line in self.text.split("\n")[:-1]]

    @property
    def runs(self) -> bool:
        """Whether it goes on."""
        return self._process.poll() is None

    async def end(self) -> int:
        """Its exit status, once everything that it wrote was read."""
        code = await asyncio.to_thread(self._process.wait, DEADLINE_SECONDS)
        await asyncio.to_thread(self._thread.join, DEADLINE_SECONDS)
        return code

    def close(self) -> None:
        """End it where it still runs."""
        if self.runs:
            self._process.kill()
        self._process.wait()
        self._thread.join()
        os.close(self._output)


@contextmanager
def watching(state: Path, deployment: str, *options: str, terminal: bool = False) -> Iterator[Watcher]:
    """The command as a person, or with `--json` a program, runs it."""
    command = [str(Path(sys.executable).with_name("tinymlaas")), "deploy", "watch", deployment, *options]
    environment = {**os.environ, "TINYMLAAS_STATE_DIR": str(state), "COLUMNS": "160", "LINES": "50", "TERM": "xterm"}
    output, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(command, stdout=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    watcher = Watcher(process, output)
    try:
        yield watcher
    finally:
        watcher.close()


def waves(document: dict[str, Any]) -> list[str]:
    """State of each wave."""
    return [wave.get("state", "STATE_PENDING").removeprefix("STATE_") for wave in document["waves"]]


def devices(document: dict[str, Any]) -> dict[str, str]:
    """State of each device."""
    return {
        rollout["device"].rsplit("/", 1)[-1]: rollout["state"].removeprefix("STATE_")
        for rollout in document["rollouts"]
    }


async def test_waves_and_devices_are_seen_while_they_change(running: RunningSuite, client: AsyncClient) -> None:
    path = ZOO / "kws" / "kws_int8.tflite"
    version = await client.import_model(path.read_bytes(), "kws-int8", model_format(path), licence="Apache-2.0")
    boards = [await running.board(client, "node-m4f", endpoint) for endpoint in ("watch-1", "watch-2")]
    begun = await client.create_deployment(
        version.name,
        devices=boards,
        samples_sha256=await client.write_artifact((ZOO / "kws" / "samples.npz").read_bytes()),
        policy=rollout_policy(waves=("canary=1",), approve=True),
    )
    name, state = begun.name.rsplit("/", 1)[-1], running.suite.state
    with watching(state, name, "--json") as lines, watching(state, name, terminal=True) as screen:

        async def waits() -> bool:
            return any(waves(document) == ["PASSED", "AWAITING_APPROVAL"] for document in lines.documents)

        async def shows() -> bool:
            return "awaiting approval" in screen.text and "canary" in screen.text

        await eventually(waits)
        await eventually(shows)
        assert lines.runs
        assert screen.runs
        before = devices(lines.documents[-1])
        assert sorted(before.values()) == ["ACTIVE", "PENDING"]
        assert "succeeded" not in screen.text
        await client.approve_deployment(name)
        assert (await lines.end(), await screen.end()) == (0, 0)
        documents = lines.documents
    assert documents[-1]["state"] == "STATE_SUCCEEDED"
    assert waves(documents[-1]) == ["PASSED", "PASSED"]
    assert devices(documents[-1]) == dict.fromkeys(boards, "ACTIVE")
    # The first board may have been ready before anybody watched.
    (second,) = [board for board, its in before.items() if its == "PENDING"]
    seen = [devices(document)[second] for document in documents]
    assert {"INSTALLING", "SELF_TESTING", "ACTIVATING"} & set(seen), seen
    assert all(board in screen.text for board in boards)
    assert "succeeded" in screen.text
