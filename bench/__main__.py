"""`python -m bench`: start a suite of its own, measure, print the tables, keep them in bench/results."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import compilers, optimizer, recipes, services
from tinymlaas_client.cli._context import Session
from tinymlaas_client.cli.suite_commands import start_and_wait

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


async def main(
    parts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    plugins: Sequence[str],
    state: Path,
    chosen: Sequence[tuple[str, str]] = (),
) -> None:
    """Measure the parts, compilers with the given plugins or all, of recipes those chosen (model, recipe) or all."""
    console = Console(width=200)
    session = Session(address="", token_file=None, project="bench", state=state, as_json=False)
    suite = session.suite()
    # Ended from outside, the suite ends with it.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await start_and_wait(suite, session)
        async with session.connect() as client:
            if "compilers" in parts:
                results = RESULTS / "compilers.json"
                rows = await compilers.measure(client, ROOT / "zoo", pairs, console, plugins=plugins, kept=results)
                console.print(*compilers.tables(rows), sep="\n\n")
            if "objectives" in parts:
                chosen = [(model, "cortex-m4") for model in compilers.MODELS]
                found = []
                for objective in ("balanced", *compilers.OBJECTIVES):
                    found += await compilers.measure(
                        client, ROOT / "zoo", chosen, console, objective, [compilers.NATIVE]
                    )
                compilers.write(found, RESULTS / "objectives.json")
                console.print(compilers.trades(found))
            if "optimizer" in parts:
                tried = await optimizer.measure(client, ROOT / "zoo", console, RESULTS)
                optimizer.write(tried, RESULTS / "optimizer.json")
                console.print(optimizer.table(tried))
            if "recipes" in parts:
                built = RESULTS / "recipes.json"
                made = await recipes.measure(
                    client, ROOT / "zoo", console, chosen, recipes.read(built) if chosen else ()
                )
                recipes.write(made, built)
                console.print(recipes.table(made))
            if "services" in parts:
                gateway = services.Gateway(suite.gateway_address, suite.token, suite.records()["gateway"].pid)
                figures = await services.measure(client, ROOT / "zoo", gateway)
                services.show(figures, console)
                services.write(figures, RESULTS / "services.json")
    finally:
        suite.stop()
    if "cost" in parts:
        cost = compilers.compile_cost()
        (RESULTS / "compile-cost.json").write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
        console.print(compilers.cost_table(cost))


if __name__ == "__main__":
    names = ["compilers", "objectives", "cost", "optimizer", "recipes", "services"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", default=names, help=f"which of {', '.join(names)}; default: all")
    parser.add_argument("--all-targets", action="store_true", help="every model on every CPU")
    parser.add_argument("--native", action="store_true", help=f"only {compilers.NATIVE}")
    parser.add_argument("--compiler", action="append", default=[], help="only this plugin; may be repeated")
    parser.add_argument("--models", nargs="*", default=[*compilers.MODELS, *compilers.FLOAT_MODELS], help="only these")
    parser.add_argument("--targets", nargs="*", default=list(compilers.TARGETS), help="only these")
    parser.add_argument("--recipe", action="append", default=[], help="only this recipe; may be repeated; others stay")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.part if part not in names]
    unknown += [name for name in arguments.recipe if all(name not in each for each in recipes.RECIPES.values())]
    if unknown:
        parser.error(f"unknown part or recipe {unknown[0]!r}; parts: {', '.join(names)}")
    every = compilers.ALL_PAIRS if arguments.all_targets else compilers.PAIRS
    every = [*every, *compilers.FLOAT_PAIRS]
    pairs = [pair for pair in every if pair[0] in arguments.models and pair[1] in arguments.targets]
    chosen = [(model, name) for model in arguments.models for name in arguments.recipe]
    plugins = [*arguments.compiler, *([compilers.NATIVE] if arguments.native else [])]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asyncio.run(main(arguments.part, pairs, plugins, Path(folder), chosen))
