"""Which database a test's registries use: chosen by the fixture `database`, asked by whoever starts one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg


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
    name = "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:20]
    with psycopg.connect(server.url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if found is None:
            connection.execute(f"CREATE DATABASE {name}".encode())
    return {"database_url": server.url.replace("/postgres?", f"/{name}?", 1)}
