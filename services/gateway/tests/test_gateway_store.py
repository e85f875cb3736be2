"""The gateway's records do the same on SQLite and on PostgreSQL, also where two gateways write at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from dbos._utils import retriable_postgres_exception

import postgres_server
from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas_gateway.adapters.schema import SCHEMA, device_rollouts, instances, metadata, releases, resources
from tinymlaas_gateway.adapters.store import Refutations, Resources, Results, open_engine
from tinymlaas_gateway.core import projection
from tinymlaas_gateway.engine import durable  # noqa: F401  # it teaches SQLAlchemy so
from tinymlaas_servicekit import Unavailable, adapt, patience, sql
from tinymlaas_servicekit.leases import Leases

Build = builds_pb2.Build
NAME = "projects/default/builds/one"
TOGETHER = 8


def builds_of(engine: sa.Engine) -> Resources[builds_pb2.Build]:
    return Resources(engine, "build", Build, projection.ended)


def at_once(work: list[Callable[[], object]]) -> list[object]:
    """What functions return that begin at the same moment."""
    line = threading.Barrier(len(work))

    def run(each: Callable[[], object]) -> object:
        line.wait(60)
        return each()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def test_gateways_that_open_an_empty_database_at_once_all_find_its_tables(database_url: str) -> None:
    def open_and_look() -> list[str]:
        engine = open_engine(database_url)
        try:
            return builds_of(engine).unfinished()
        finally:
            engine.dispose()

    assert at_once([open_and_look] * 4) == [[]] * 4


def test_of_two_gateways_that_create_the_same_resource_one_made_it(opened: Callable[[], sa.Engine]) -> None:
    stores = [builds_of(opened()), builds_of(opened())]

    def create(index: int) -> Callable[[], object]:
        body = Build(name=NAME, model_version=f"version-{index}")
        return lambda: stores[index % 2].create("default", body, f"print-{index}")

    answers = at_once([create(index) for index in range(TOGETHER)])
    made = [record for record, own in answers if own]  # type: ignore[misc]
    assert len(made) == 1
    assert {record.fingerprint for record, _ in answers} == {made[0].fingerprint}  # type: ignore[misc]
    assert stores[0].page("default", 10, None)[0] == [made[0].body]


def test_a_create_whose_answer_got_lost_may_be_repeated(opened: Callable[[], sa.Engine]) -> None:
    store, body = builds_of(opened()), Build(name=NAME, model_version="v")
    assert store.create("default", body, "print")[1]
    assert store.create("default", body, "print")[1]
    store.change(NAME, lambda build: setattr(build, "model_version", "w"))
    assert not store.create("default", body, "print")[1]


def test_no_change_is_lost_between_gateways(opened: Callable[[], sa.Engine]) -> None:
    stores = [builds_of(opened()), builds_of(opened())]
    stores[0].create("default", Build(name=NAME), "print")

    def change(index: int) -> Callable[[], object]:
        def edit(build: builds_pb2.Build) -> None:
            build.candidates.add(plugin=f"plugins/p{index}")

        return lambda: stores[index % 2].change(NAME, edit)

    at_once([change(index) for index in range(TOGETHER)])
    record = stores[1].get(NAME)
    assert record is not None
    assert sorted(item.plugin for item in record.body.candidates) == [f"plugins/p{i}" for i in range(TOGETHER)]
    assert record.revision == TOGETHER + 1


def test_a_cancellation_is_seen_by_every_gateway(opened: Callable[[], sa.Engine]) -> None:
    one, other = builds_of(opened()), builds_of(opened())
    one.create("default", Build(name=NAME), "print")
    assert one.request_cancel(NAME).cancel_requested
    seen = other.get(NAME)
    assert seen is not None
    assert seen.cancel_requested
    with pytest.raises(KeyError):
        other.request_cancel("projects/default/builds/none")


def test_the_first_result_stays_and_a_refutation_counts_once(opened: Callable[[], sa.Engine]) -> None:
    engines = [opened(), opened()]
    results = [Results(engine) for engine in engines]
    digest = "a" * 64
    at_once([lambda i=i: results[i % 2].put("check", digest, b"%d" % i) for i in range(TOGETHER)])  # type: ignore[misc]
    first = results[0].get("check", digest)
    results[1].put("check", digest, b"later")
    assert results[1].get("check", digest) == first is not None
    counts = [Refutations(engine) for engine in engines]
    at_once([lambda i=i: counts[i % 2].add("p", "1", f"build-{i % 3}") for i in range(TOGETHER)])  # type: ignore[misc]
    assert counts[0].count("p", "1") == 3


@pytest.mark.parametrize("why", ["no such name", "no such socket", "nobody listens"])
def test_a_server_that_is_not_reached_just_now_is_away_for_dbos_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused_tcp_port: int, why: str
) -> None:
    """DBOS itself repeats what failed with some of the driver's texts; what failed with others would end its workflow."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    host = {"no such name": "database.invalid", "no such socket": str(tmp_path), "nobody listens": "127.0.0.1"}[why]
    if why == "no such name":
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    engine = sa.create_engine(f"postgresql+psycopg://nobody@/none?host={host}&port={unused_tcp_port}")
    with pytest.raises(sa.exc.OperationalError) as caught:
        engine.connect()
    assert retriable_postgres_exception(caught.value)


def test_a_server_that_is_away_is_unavailable_and_a_broken_file_is_our_own_fault(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    with pytest.raises(sa.exc.OperationalError) as away:
        sql.open_engine(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none").connect()
    told = adapt(away.value)
    assert told is not None
    assert (told.code, told.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
    with (
        pytest.raises(sa.exc.OperationalError) as broken,
        sql.open_engine(f"sqlite:///{tmp_path}/no.db").begin() as connection,
    ):
        connection.exec_driver_sql("SELECT * FROM none")
    assert adapt(broken.value) is None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_work_goes_on_after_the_server_dropped_every_connection(opened: Callable[[], sa.Engine]) -> None:
    store = builds_of(opened())
    store.create("default", Build(name=NAME), "print")
    other = opened()

    def drop_then_edit(build: builds_pb2.Build) -> None:
        if not dropped:
            dropped.append(True)
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            with other.connect() as connection:
                connection.exec_driver_sql(f"{query} AND datname = current_database()").all()
        build.model_version = "changed"

    dropped: list[bool] = []
    assert store.change(NAME, drop_then_edit).body.model_version == "changed"
    seen = store.get(NAME)
    assert seen is not None
    assert seen.revision == 2


def test_what_was_refuted_before_a_release_counts_no_more(opened: Callable[[], sa.Engine]) -> None:
    one, other = Refutations(opened()), Refutations(opened())
    for build in ("b1", "b2", "b3"):
        one.add("p", "1", build)
    one.add("p", "2", "b4")
    assert other.counts() == {("p", "1"): 3, ("p", "2"): 1}
    one.release("p", "1")
    assert other.counts() == {("p", "1"): 0, ("p", "2"): 1}, "another version is another matter"
    assert one.add("p", "1", "b3") == 0, "a repeated step counts no build twice"
    assert one.add("p", "1", "b5") == 1
    other.release("p", "1")
    other.release("p", "1")
    other.release("q", "1")
    assert one.counts() == {("p", "1"): 0, ("p", "2"): 1}


def test_migrations_make_the_tables_that_the_code_uses_and_go_back(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA.versions})
        assert compare_metadata(context, metadata) == []
    builds_of(engine).create("default", Build(name=NAME), "print")
    SCHEMA.downgrade(engine, "0001")
    assert instances.name not in sa.inspect(engine).get_table_names()
    assert builds_of(engine).get(NAME) is not None, "going back loses no build"
    SCHEMA.upgrade(engine)
    assert builds_of(engine).get(NAME) is not None
    SCHEMA.downgrade(engine, "base")
    assert sa.inspect(engine).get_table_names() == ["gateway_schema_version"]
    SCHEMA.upgrade(engine)
    assert builds_of(engine).unfinished() == []
    engine.dispose()


def test_a_gateway_of_the_version_before_starts_on_a_database_that_was_upgraded_and_changes_no_table(
    database_url: str, opened: Callable[[], sa.Engine]
) -> None:
    builds_of(opened()).create("default", Build(name=NAME), "print")
    version = sa.table(SCHEMA.versions, sa.column("version_num"))
    with opened().begin() as connection:
        connection.execute(version.update().values(version_num="of a later version"))
    assert builds_of(opened()).get(NAME) is not None
    with opened().begin() as connection:
        assert connection.scalars(sa.select(version.c.version_num)).all() == ["of a later version"]


def test_a_database_from_before_migrations_is_taken_over_with_its_rows(database_url: str) -> None:
    before = sql.open_engine(database_url)
    later = (instances, device_rollouts, releases)
    metadata.create_all(before, tables=[table for table in metadata.sorted_tables if table not in later])
    with before.begin() as connection:
        row = {"kind": "build", "project": "default", "fingerprint": "f", "revision": 1, "ended": False}
        row |= {"cancel_requested": False, "name": NAME, "body": Build(name=NAME).SerializeToString()}
        connection.execute(resources.insert().values(row))
    before.dispose()
    engine = open_engine(database_url)
    assert builds_of(engine).unfinished() == [NAME]
    engine.dispose()


def test_a_lease_holds_runs_out_and_can_be_taken(opened: Callable[[], sa.Engine]) -> None:
    one = Leases(opened(), instances, "one", seconds=3600)
    two = Leases(opened(), instances, "two", seconds=3600)
    one.take("one:1")
    two.take("two:1")
    assert one.alive() == {"one": "one:1", "two": "two:1"}
    assert one.renew()
    assert one.expired() == []
    one.release()
    assert two.alive() == {"two": "two:1"}
    assert two.expired() == ["one"]
    assert one.expired() == []
    assert one.renew(), "a lease that ran out and that nobody took is its holder's again"
    two.clear("one")
    assert two.alive() == {"one": "one:1", "two": "two:1"}, "one that came back is not forgotten"
    one.release()
    two.clear("one")
    assert two.expired() == []
    assert not one.renew(), "a forgotten one must take its name again"
    again = Leases(opened(), instances, "two", seconds=3600)
    again.take("two:2")
    assert not two.renew(), "its name was taken by another process"
    two.release()
    assert one.alive() == {"two": "two:2"}, "who lost a name can't end the lease of who has it"


@pytest.mark.parametrize("left_s", [-100.0, 1000.0], ids=["it ran out", "it was renewed late"])
def test_leases_that_ran_out_while_nobody_could_renew_are_nobody_s_to_take_over(
    opened: Callable[[], sa.Engine], left_s: float
) -> None:
    """The database was away: who is back first sees the others' leases run out, though they live."""
    engine = opened()
    one, two, given_up = (Leases(engine, instances, name, seconds=3600) for name in ("one", "two", "given-up"))
    for each in (one, two, given_up):
        each.take()
    given_up.release()
    with engine.begin() as connection:
        before = sql.database_time(connection)
        connection.execute(instances.update().where(instances.c.instance == "one").values(expires_at=before + left_s))
        connection.execute(instances.update().where(instances.c.instance == "two").values(expires_at=before - 100.0))
    assert one.renew()
    assert one.expired() == ["given-up"]
    assert two.renew(), "nobody took its name meanwhile"
    assert set(one.alive()) == {"one", "two"}


def test_who_never_renews_is_taken_for_dead_in_the_end(opened: Callable[[], sa.Engine]) -> None:
    one, dead = (Leases(opened(), instances, name, seconds=0.5) for name in ("one", "dead"))
    dead.take()
    one.take()
    end = time.monotonic() + 60
    while one.expired() != ["dead"]:
        assert time.monotonic() < end
        assert one.renew()
        time.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers give up at once."""
    monkeypatch.setattr(patience, "CALL_SECONDS", 0.0)


async def test_a_durable_step_waits_for_the_database_for_longer_than_a_caller(
    postgresql_server: postgres_server.Server, tmp_path: Path, impatient: None
) -> None:
    engine = open_engine(postgres_server.database(postgresql_server.url, str(tmp_path)))
    store = builds_of(engine)
    store.create("default", Build(name=NAME), "print")
    await asyncio.to_thread(postgresql_server.crash)
    try:
        with pytest.raises(Unavailable) as told:
            await asyncio.to_thread(store.get, NAME)
        assert told.value.reason == sql.AWAY
        with patience.durable():
            step = asyncio.create_task(asyncio.to_thread(store.get, NAME))
        with pytest.raises(Unavailable):
            await asyncio.to_thread(store.get, NAME)
        assert not step.done()
    finally:
        await asyncio.to_thread(postgresql_server.start)
    async with asyncio.timeout(60):
        assert await step is not None
    engine.dispose()


async def test_what_waits_for_the_database_ends_when_the_process_stops(
    postgresql_server: postgres_server.Server, tmp_path: Path
) -> None:
    engine = open_engine(postgres_server.database(postgresql_server.url, str(tmp_path)))
    store = builds_of(engine)
    await asyncio.to_thread(postgresql_server.crash)
    try:
        with patience.durable():
            step = asyncio.create_task(asyncio.to_thread(store.get, NAME))
        patience.give_up()
        with pytest.raises(Unavailable):
            async with asyncio.timeout(60):
                await step
    finally:
        patience.resume()
        await asyncio.to_thread(postgresql_server.start)
    engine.dispose()


def test_a_pool_whose_connections_all_wait_is_an_outage_too(database_url: str, impatient: None) -> None:
    engine = sa.create_engine(sql.with_driver(database_url), pool_size=1, max_overflow=0, pool_timeout=0.01)
    if database_url.startswith("sqlite"):
        Path(database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with engine.connect(), pytest.raises(Unavailable) as told:
        builds_of(engine).get(NAME)
    assert told.value.reason == sql.AWAY
    engine.dispose()
