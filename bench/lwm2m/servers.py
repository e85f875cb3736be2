"""The bridge and Eclipse Leshan as processes on loopback whose processor time and memory can be read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_S = 90.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server and where its CoAP is."""

    process: subprocess.Popen[bytes]
    coap: tuple[str, int]

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.process.pid)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the process has ended")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def free_port() -> int:
    """A UDP port of loopback that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def bridge(folder: Path) -> Iterator[Server]:
    """A bridge with its state in a folder, as people run it but for the registry, which registrations do not need."""
    port = free_port()
    address = folder / "bridge-address"
    own = {
        "LISTEN": "127.0.0.1:0",
        "TOKEN": "bench",
        "ADDRESS_FILE": str(address),
        "STATE_DIR": str(folder / "bridge"),
        "REGISTRY_ADDRESS": "127.0.0.1:1",
        "COAP_LISTEN": f"127.0.0.1:{port}",
    }
    environment = {**os.environ, **{f"TINYMLAAS_{key}": value for key, value in own.items()}}
    with (folder / "bridge.log").open("ab") as log:
        command = [sys.executable, "-m", "tinymlaas_lwm2m_bridge"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _await(process, address.exists, folder / "bridge.log")
        yield Server(process, ("127.0.0.1", port))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def leshan(root: Path, folder: Path) -> Iterator[Server]:
    """The Leshan server of tests/interop, with the JVM's own settings but for its heap."""
    sys.path.insert(0, str(root / "tests" / "interop"))
    from leshan_peer import build_leshan, write_definitions

    models = folder / "models"
    write_definitions(models)
    command = ["java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", build_leshan(root).class_path]
    command += ["io.tinymlaas.interop.Server", "--models", str(models), "--quiet", "true"]
    with (folder / "leshan.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        uri = json.loads(process.stdout.readline())["uri"]
        yield Server(process, ("127.0.0.1", int(uri.rpartition(":")[2])))
    finally:
        process.kill()
        process.wait()


def missing_for_leshan() -> list[str]:
    """Tools that the Leshan server needs and that are not here."""
    return [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the bridge does not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)
