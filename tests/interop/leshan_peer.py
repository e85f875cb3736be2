"""Eclipse Leshan as a peer: builds the two programs of `leshan/` and talks to them over stdin and stdout."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tinymlaas_lwm2m import IPSO_SENSORS, ML_CAPABILITY, OBJECTS
from tinymlaas_lwm2m.definition import to_xml

DEADLINE_S = 45.0
_BUILD_S = 600.0


@dataclass(frozen=True)
class Leshan:
    """The built programs: what stands after `java -cp`."""

    class_path: str


def build_leshan(root: Path) -> Leshan:
    """Build with Maven, without the network where everything is there already; skips where a tool is missing."""
    missing = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"Leshan needs a JDK of version 17 or later and Maven; missing here: {', '.join(missing)}")
    project, target = root / "tests/interop/leshan", root / "build/interop-leshan"
    listing, stamp = target / "classpath.txt", target / "built"
    sources = [project / "pom.xml", *project.glob("src/**/*.java")]
    if not stamp.exists() or any(source.stat().st_mtime > stamp.stat().st_mtime for source in sources):
        goals = ["compile", "dependency:build-classpath", f"-Dmdep.outputFile={listing}"]
        for offline in (["-o"], []):
            command = ["mvn", "-q", "-B", *offline, *goals]
            built = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=_BUILD_S, check=False)
            if built.returncode == 0:
                break
        else:
            pytest.fail(f"Maven could not build {project.name}:\n{built.stdout[-4000:]}")
        stamp.touch()
    return Leshan(f"{target / 'classes'}:{listing.read_text(encoding='utf-8').strip()}")


def write_definitions(folder: Path) -> None:
    """The OMA files that Leshan does not bring itself, from this project's own definitions; Leshan validates them."""
    folder.mkdir()
    for object_id in (9, ML_CAPABILITY, *(sensor for sensor in IPSO_SENSORS if sensor in OBJECTS)):
        urn = f"urn:oma:lwm2m:{'x' if object_id >= 10_241 else 'ext' if object_id > 1000 else 'oma'}:{object_id}"
        text = to_xml(OBJECTS[object_id], description="", urn=urn)
        (folder / f"{object_id}.xml").write_text(text, encoding="utf-8")


@dataclass
class Peer:
    """One running program. Events are kept until a test asks for them."""

    process: Process
    events: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _numbers: int = 0

    async def collect(self) -> None:
        """Read events until the program ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            text = line.decode(errors="replace").strip()
            async with self._changed:
                if text.startswith("{"):
                    self.events.append(json.loads(text))
                else:
                    self.log.append(text)
                self._changed.notify_all()
        async with self._changed:
            self.events.append({"event": "ended"})
            self._changed.notify_all()

    async def event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The first event of that name with those values, now or later; it is taken."""

        def found() -> dict[str, Any] | None:
            for event in self.events:
                if event["event"] == "ended" or (event["event"] == name and wanted.items() <= event.items()):
                    return event
            return None

        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(DEADLINE_S):
                    await self._changed.wait_for(lambda: found() is not None)
            event = found()
            if event is None or event["event"] != name:
                raise AssertionError(f"no event {name} {wanted}; there were {self.events[-20:]} and {self.log[-40:]}")
            self.events.remove(event)
            return event

    async def do(self, command: str, **arguments: Any) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps({"do": command, **arguments}) + "\n").encode())
        await self.process.stdin.drain()

    async def ask(self, command: str, endpoint: str, **arguments: Any) -> dict[str, Any]:
        """Give a command to a server and wait for its answer."""
        self._numbers += 1
        await self.do(command, id=self._numbers, endpoint=endpoint, **arguments)
        return await self.event("answer", id=self._numbers)


class Peers:
    """Starts programs and ends them."""

    def __init__(self, build: Leshan, models: Path) -> None:
        self._build = build
        self._models = models
        self._started: list[tuple[Peer, asyncio.Task[None]]] = []

    async def client(self, endpoint: str, **options: str) -> Peer:
        """A Leshan client."""
        return await self._start("Client", endpoint=endpoint, **options)

    async def server(self, port: str = "0") -> tuple[Peer, str]:
        """A Leshan server and its URI."""
        peer = await self._start("Server", port=port)
        return peer, str((await peer.event("listening"))["uri"])

    async def _start(self, program: str, **options: str) -> Peer:
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        process = await asyncio.create_subprocess_exec(
            "java",
            "-Xmx256m",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp",
            self._build.class_path,
            f"io.tinymlaas.interop.{program}",
            "--models",
            str(self._models),
            *arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )
        peer = Peer(process)
        self._started.append((peer, asyncio.create_task(peer.collect(), name=f"output of {program}")))
        return peer

    async def close(self) -> None:
        """End all that still run."""
        for peer, reader in self._started:
            with suppress(ProcessLookupError):
                peer.process.kill()
            await peer.process.wait()
            await reader
