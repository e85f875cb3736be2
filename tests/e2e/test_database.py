"""The suite on PostgreSQL: a database that dies as work begins, and stays away for a while, ends none of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

import postgres_server
from suite_rig import ZOO, finished_deployment, start_suite, suite_below
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.type.v1 import tensor_pb2

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kill"), pytest.mark.timeout(900)]

Rollout = deployments_pb2.DeviceRollout
BOARDS = {"db-m4f": "node-m4f", "db-tflm": "tflm-m4f"}
AWAY_SECONDS = (0.5, 3.0, 18.0, 1.0, 6.0, 0.5)
"""How long the database is away from each deployment; once for longer than a lease."""


def test_deployments_that_begin_as_the_database_dies_reach_every_board(tmp_path: Path) -> None:
    chance = random.Random(8)
    with postgres_server.serving() as server:
        database = postgres_server.database(server.url, str(tmp_path))
        suite = suite_below(tmp_path, TINYMLAAS_DATABASE_URL=database)
        try:
            running = start_suite(tmp_path, TINYMLAAS_DATABASE_URL=database)

            async def scenario() -> None:
                async with running.client() as client:
                    data = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
                    model = await client.import_model(data, "kws", tensor_pb2.MODEL_FORMAT_TFLITE)
                    samples = await client.write_artifact((ZOO / "kws" / "samples.npz").read_bytes())
                    for endpoint, kind in BOARDS.items():
                        await running.board(client, kind, endpoint)
                    objectives = (builds_pb2.OBJECTIVE_FLASH, builds_pb2.OBJECTIVE_LATENCY)
                    for index, away in enumerate(AWAY_SECONDS):
                        begun = await client.create_deployment(
                            model.name, devices=BOARDS, samples_sha256=samples, objective=objectives[index % 2]
                        )
                        await asyncio.sleep(chance.uniform(0.0, 1.5))
                        await asyncio.to_thread(server.crash)
                        await asyncio.sleep(away)
                        await asyncio.to_thread(server.start)
                        ended = await finished_deployment(client, begun.name)
                        for item in ended.rollouts:
                            assert item.state == Rollout.STATE_ACTIVE, str(item)
                        assert [event.step for event in ended.rollouts[0].timeline].count("active") == 1, ended
                    assert len(await client.list_deployments()) == len(AWAY_SECONDS)

            asyncio.run(scenario())
        finally:
            suite.stop()
