"""Which database a test's registries use: chosen by the fixture `database`, asked by whoever starts one."""

from __future__ import annotations

from pathlib import Path

import postgres_server


class _Server:
    """URL of the PostgreSQL server of the running test, None for SQLite."""

    def __init__(self) -> None:
        self.url: str | None = None

    def set(self, url: str | None) -> None:
        self.url = url


server = _Server()


def settings(folder: Path) -> dict[str, str]:
    """Settings of the registry whose state is `folder`: the same database for the same folder."""
    if server.url is None:
        return {}
    return {"database_url": postgres_server.database(server.url, str(folder))}
