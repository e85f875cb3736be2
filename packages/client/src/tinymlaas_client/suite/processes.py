"""Start, watch and stop the processes of the embedded suite.

A process is known by its id and its start time in the kernel's own count, so a process id that was given to somebody else in
the meantime is never signalled. Addresses are chosen at the first start and kept, so a restarted process is found again.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tinymlaas_client.suite.manifest import ProcessSpec, SuiteManifest

# Processes outlive the program that started them, and their handles must outlive the function.
_started: list[subprocess.Popen[bytes]] = []


class SuiteError(Exception):
    """The suite cannot be started or used; the message says what to do."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process that was started: its id, kernel start time (clock ticks since boot), and when it listens, its address."""

    name: str
    pid: int
    start_ticks: int
    role: str
    address: str = ""

    @property
    def running(self) -> bool:
        """Whether that very process still runs."""
        return _start_ticks(self.pid) == self.start_ticks


class Suite:
    """The embedded suite with its state below one folder: `records`, `logs`, `token` and each service's own data."""

    def __init__(self, manifest: SuiteManifest, state: Path) -> None:
        self.manifest = manifest
        self.state = state.resolve()
        self._records_path = self.state / "suite.json"

    @property
    def token_path(self) -> Path:
        """File with the token that every call to the gateway carries; made at the first start, readable by its owner only."""
        return self.state / "token"

    @property
    def token(self) -> str:
        """The token; SuiteError when the suite was never started."""
        try:
            return self.token_path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise SuiteError(f"no suite in {self.state}: start it with `tinymlaas up`") from None

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the Ed25519 key that signs this suite's modules; SuiteError when the suite was never started."""
        try:
            return bytes.fromhex((self.state / "signing.pub").read_text(encoding="ascii").strip())
        except FileNotFoundError:
            raise SuiteError(f"no suite in {self.state}: start it with `tinymlaas up`") from None

    @property
    def gateway_address(self) -> str:
        """host:port of the gateway; SuiteError when the suite was never started."""
        address = self.records().get("gateway")
        if address is None:
            raise SuiteError(f"no suite in {self.state}: start it with `tinymlaas up`")
        return address.address

    def records(self) -> dict[str, ProcessRecord]:
        """What was started, by name, running or not."""
        try:
            entries = json.loads(self._records_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {entry["name"]: ProcessRecord(**entry) for entry in entries}

    def log_path(self, name: str) -> Path:
        """File that a process writes its log to."""
        return self.state / "logs" / f"{name}.log"

    def start_missing(self, names: Iterable[str] | None = None) -> list[ProcessRecord]:
        """Start the processes that do not run yet, in order, and return those that were started."""
        self._prepare()
        wanted = set(names) if names is not None else None
        started = []
        for spec in self.manifest.processes:
            record = self.records().get(spec.name)
            if (wanted is None or spec.name in wanted) and not (record and record.running):
                started.append(self._start_service(spec))
        return started

    def start_program(self, name: str, role: str, environment: str, arguments: list[str]) -> ProcessRecord:
        """Start one more process beside the services, such as a virtual board; replaces a record of the same name."""
        self._prepare()
        record = self.records().get(name)
        if record and record.running:
            return record
        return self._spawn(name, role, "", [str(self._python(environment, name)), *arguments], {})

    def stop(self, names: Iterable[str] | None = None, *, grace_seconds: float = 10.0) -> list[str]:
        """End the processes that this suite started: SIGTERM, then SIGKILL after the grace. Returns their names."""
        wanted = set(names) if names is not None else None
        running = [r for r in self.records().values() if r.running and (wanted is None or r.name in wanted)]
        for record in reversed(running):
            _signal(record, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while any(record.running for record in running) and time.monotonic() < deadline:
            time.sleep(0.05)
        for record in running:
            if record.running:
                _signal(record, signal.SIGKILL)
        for process in _started:
            process.poll()  # takes note of those that ended
        return [record.name for record in running]

    def _prepare(self) -> None:
        (self.state / "logs").mkdir(parents=True, exist_ok=True)
        if not self.token_path.exists():
            descriptor = os.open(self.token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32))
        records = self.records()
        missing = [spec for spec in self.manifest.processes if spec.name not in records]
        for spec, port in zip(missing, _free_ports(len(missing)), strict=True):
            records[spec.name] = ProcessRecord(spec.name, 0, 0, spec.role, f"127.0.0.1:{port}")
        if missing:
            self._write_records(records)
        plugins = [{"address": record.address} for record in records.values() if record.role == "plugin"]
        _write_atomically(self.state / "plugins.json", json.dumps(plugins, indent=1))

    def _start_service(self, spec: ProcessSpec) -> ProcessRecord:
        records = self.records()
        address = records[spec.name].address
        values = {f"address:{name}": record.address for name, record in records.items()}
        values |= {"state": str(self.state / spec.name), "suite": str(self.state), "root": str(self.manifest.root)}
        values |= {"token_file": str(self.token_path), "coap_port": address.rsplit(":", 1)[-1]}
        environment = {"TINYMLAAS_LISTEN": address, "TINYMLAAS_TOKEN_FILE": str(self.token_path)}
        for key, value in spec.settings.items():
            for name, filling in values.items():
                value = value.replace("{" + name + "}", filling)
            environment[key] = value
        (self.state / spec.name).mkdir(exist_ok=True)
        command = [str(self._python(spec.environment, spec.name)), "-m", spec.module]
        return self._spawn(spec.name, spec.role, address, command, environment)

    def _python(self, environment: str, name: str) -> Path:
        python = self.manifest.root / environment / "bin" / "python"
        if not python.exists():
            raise SuiteError(
                f"{name} is not installed ({environment} is missing): run `make setup` in {self.manifest.root}"
            )
        return python

    def _spawn(
        self, name: str, role: str, address: str, command: list[str], environment: dict[str, str]
    ) -> ProcessRecord:
        with self.log_path(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.state,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        _started.append(process)
        record = ProcessRecord(name, process.pid, _start_ticks(process.pid) or 0, role, address)
        self._write_records({**self.records(), name: record})
        return record

    def _write_records(self, records: dict[str, ProcessRecord]) -> None:
        _write_atomically(self._records_path, json.dumps([asdict(record) for record in records.values()], indent=1))


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of proc(5) stat), None when there is none or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[-1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if pid == 0 or fields[0] in (b"Z", b"X") else int(fields[19])


def _signal(record: ProcessRecord, number: signal.Signals) -> None:
    """Signal the whole session of a process that is known to be ours."""
    if record.running:
        os.killpg(record.pid, number)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, for TCP and UDP alike, all different."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < 2 * count:
            stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            stream.bind(("127.0.0.1", 0))
            datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                datagram.bind(("127.0.0.1", stream.getsockname()[1]))
            except OSError:
                stream.close()
                datagram.close()
                continue
            sockets += [stream, datagram]
        return [sockets[2 * index].getsockname()[1] for index in range(count)]
    finally:
        for opened in sockets:
            opened.close()


def _write_atomically(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
