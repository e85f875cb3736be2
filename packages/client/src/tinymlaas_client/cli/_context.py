"""What every command shares: where the gateway is, who asks, and how results are printed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.suite import Suite, load_manifest
from tinymlaas_servicekit.tls import TlsFiles

T = TypeVar("T")


@dataclass
class Session:
    """Global options of one invocation."""

    address: str
    token_file: Path | None
    project: str
    state: Path
    as_json: bool
    tls: TlsFiles | None = None

    @property
    def console(self) -> Console:
        """Where results go."""
        # A file or a pipe has no edge: tables keep their words whole there. COLUMNS says otherwise.
        wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        return Console(highlight=False, width=160 if wide else None)

    def suite(self) -> Suite:
        """The local suite, started or not."""
        return Suite(load_manifest(), self.state)

    def connect(self) -> AsyncClient:
        """A client for the gateway that the options name, else for the local suite's."""
        if self.address:
            token = self.token_file.read_text(encoding="ascii").strip() if self.token_file else None
            return AsyncClient(self.address, token=token, project=self.project, tls=self.tls)
        suite = self.suite()
        return AsyncClient(suite.gateway_address, token=suite.token, project=self.project)

    def print_json(self, value: Message | Sequence[Message] | dict[str, Any] | list[Any]) -> None:
        """Print messages or plain values as JSON."""
        print(json.dumps(to_plain(value), indent=1, ensure_ascii=False))

    def print_json_line(self, value: Message) -> None:
        """Print a message as one line of JSON, at once: for programs that read what follows one after the other."""
        print(json.dumps(to_plain(value), ensure_ascii=False), flush=True)


def to_plain(value: Any) -> Any:
    """Messages as JSON-ready values, with the proto's field names."""
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(work)
