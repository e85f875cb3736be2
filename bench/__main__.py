"""`python -m bench`: start a suite of its own, measure, print the tables, keep them in bench/results."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from rich.console import Console

from bench import compilers, services
from tinymlaas_client.cli._context import Session
from tinymlaas_client.cli.suite_commands import start_and_wait

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


async def main(parts: list[str], pairs: list[tuple[str, str]], state: Path) -> None:
    """Measure the parts."""
    console = Console(width=180)
    session = Session(address="", token_file=None, project="bench", state=state, as_json=False)
    suite = session.suite()
    try:
        await start_and_wait(suite, session)
        async with session.connect() as client:
            if "compilers" in parts:
                rows = await compilers.measure(client, ROOT / "zoo", pairs, console)
                compilers.show(rows, console)
                compilers.write(rows, RESULTS / "compilers.json")
            if "services" in parts:
                figures = await services.measure(client, ROOT / "zoo")
                services.show(figures, console)
                services.write(figures, RESULTS / "services.json")
    finally:
        suite.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=["all", "compilers", "services"])
    parser.add_argument("--all-targets", action="store_true", help="every model on every CPU (about half an hour)")
    arguments = parser.parse_args()
    chosen = compilers.ALL_PAIRS if arguments.all_targets else compilers.PAIRS
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        parts = [arguments.part] if arguments.part != "all" else ["compilers", "services"]
        asyncio.run(main(parts, chosen, Path(folder)))
