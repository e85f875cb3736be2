"""A deployment is one message to its readers and a row for each device in the database, whichever gateway writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_gateway.adapters.deployments import Deployments
from tinymlaas_gateway.adapters.schema import SCHEMA, resources
from tinymlaas_gateway.engine.deployments import ended

Deployment = deployments_pb2.Deployment
Rollout = deployments_pb2.DeviceRollout
NAME = "projects/default/deployments/one"


def device(number: int) -> str:
    return f"projects/default/devices/d{number}"


def filled(store: Deployments, count: int) -> deployments_pb2.Deployment:
    """A deployment of so many devices, stored."""
    body = Deployment(name=NAME, state=Deployment.STATE_RUNNING, devices=[device(n) for n in range(count)])
    store.create("default", Deployment(name=NAME), "print")

    def edit(there: deployments_pb2.Deployment) -> None:
        there.CopyFrom(body)
        for number in range(count):
            there.rollouts.add(device=device(number), install_id=f"i{number}")

    return store.change(NAME, edit).body


def test_what_was_written_is_read_whole_by_every_gateway(opened: Callable[[], sa.Engine]) -> None:
    one, other = Deployments(opened(), ended), Deployments(opened(), ended)
    body = filled(one, 300)
    for store in (one, other):
        seen = store.get(NAME)
        assert seen is not None
        assert (seen.body, seen.revision) == (body, 2)
        assert store.latest("default", 10, None)[0][1].body == body
    for store, number in ((one, 3), (other, 4), (one, 4)):
        store.change_device(NAME, device(number), lambda item: item.timeline.add(step="begun"))
    for store in (one, other):
        seen = store.get(NAME)
        assert seen is not None
        assert [len(item.timeline) for item in seen.body.rollouts[:6]] == [0, 0, 0, 1, 2, 0]
        assert seen.revision == 5
        narrow = store.get_device(NAME, device(4))
        assert narrow is not None
        assert list(narrow.body.rollouts) == [seen.body.rollouts[4]]
        assert narrow.body.devices == seen.body.devices


def test_a_change_of_one_device_writes_its_row_and_no_other(opened: Callable[[], sa.Engine]) -> None:
    engine = opened()
    store = Deployments(engine, ended)
    filled(store, 200)
    written: list[int] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def count(_c: object, _cursor: object, statement: str, parameters: object, _x: object, many: bool) -> None:
        if statement.startswith(("UPDATE", "INSERT")):
            written.append(sum(len(value) for value in parameters if isinstance(value, bytes)))  # type: ignore[attr-defined]

    store.change_device(NAME, device(7), lambda item: setattr(item, "stuck", True))
    assert len(written) == 2
    assert sum(written) < 200
    written.clear()
    store.change(NAME, lambda body: setattr(body.rollouts[8], "stuck", True))
    assert len(written) == 2, "an edit of the whole writes what it changed"
    store.change_device(NAME, device(7), lambda item: setattr(item, "stuck", True))
    store.change(NAME, lambda body: None)
    assert len(written) == 2, "what changes nothing writes nothing"


def test_changes_of_devices_by_two_gateways_and_of_the_whole_are_all_kept(opened: Callable[[], sa.Engine]) -> None:
    stores = [Deployments(opened(), ended), Deployments(opened(), ended)]
    filled(stores[0], 8)
    line = threading.Barrier(8)

    def work(index: int) -> None:
        line.wait(60)
        for turn in range(5):
            if index == 0:
                stores[0].change(NAME, lambda body: body.devices.append("x"))
            else:
                stores[index % 2].change_device(
                    NAME,
                    device(index),
                    lambda item, turn=turn: item.timeline.add(step=f"{turn}"),  # type: ignore[misc]
                )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for store in stores:
        seen = store.get(NAME)
        assert seen is not None
        assert len(seen.body.devices) == 13
        assert [len(item.timeline) for item in seen.body.rollouts] == [0] + [5] * 7
        assert seen.revision == 42


def test_who_takes_no_part_is_told_apart_and_nobody_leaves(opened: Callable[[], sa.Engine]) -> None:
    store = Deployments(opened(), ended)
    assert store.get_device(NAME, device(0)) is None
    with pytest.raises(KeyError):
        store.change_device(NAME, device(0), lambda item: None)
    filled(store, 2)
    with pytest.raises(KeyError):
        store.change_device(NAME, device(2), lambda item: None)
    narrow = store.get_device(NAME, device(2))
    assert narrow is not None
    assert not narrow.body.rollouts
    with pytest.raises(ValueError, match="does not leave"):
        store.change(NAME, lambda body: body.rollouts.pop())
    seen = store.get(NAME)
    assert seen is not None
    assert len(seen.body.rollouts) == 2


def test_a_cancellation_is_seen_though_the_revision_stays(opened: Callable[[], sa.Engine]) -> None:
    one, other = Deployments(opened(), ended), Deployments(opened(), ended)
    filled(one, 2)
    assert [store.get(NAME).cancel_requested for store in (one, other)] == [False, False]  # type: ignore[union-attr]
    other.request_cancel(NAME)
    assert [store.get(NAME).cancel_requested for store in (one, other)] == [True, True]  # type: ignore[union-attr]


def test_deployments_of_an_older_gateway_are_split_and_joined_again(opened: Callable[[], sa.Engine]) -> None:
    engine = opened()
    body = filled(Deployments(engine, ended), 3)
    SCHEMA.downgrade(engine, "0002")
    with engine.connect() as connection:
        whole = connection.execute(sa.select(resources.c.body)).scalar_one()
    assert Deployment.FromString(whole) == body
    SCHEMA.upgrade(engine)
    seen = Deployments(engine, ended).get(NAME)
    assert seen is not None
    assert seen.body == body
