"""The bridge's database: migrations make what the code uses, and take over what was made before there were migrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tinymlaas_lwm2m import ObjectLink
from tinymlaas_lwm2m_bridge import (
    BootstrapRecord,
    BootstrapState,
    Failure,
    InstallEvent,
    InstallRequest,
    Registration,
    SqlStore,
    Step,
)
from tinymlaas_lwm2m_bridge.core.device_keys import DeviceKeys
from tinymlaas_lwm2m_bridge.core.install_record import InstallRecord
from tinymlaas_lwm2m_bridge.fleet_store import FleetStore, Owner
from tinymlaas_lwm2m_bridge.key_store import SqlKeyStore
from tinymlaas_lwm2m_bridge.schema import SCHEMA, installs, metadata

REGISTRATION = Registration(
    "id-1", "node-1", "coap://127.0.0.1:1", "coap://127.0.0.1:2", 60, "1.1", "U", False, (ObjectLink(3, 0),), 1.0, 2.0
)
INSTALL = InstallRecord(InstallRequest("i-1", "node-1", "ab" * 32), created_at=1.0, updated_at=1.0)


def test_migrations_make_the_tables_that_the_code_uses_and_go_back(database_url: str) -> None:
    store = SqlStore(database_url)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "bridge_schema_version"})
        assert compare_metadata(context, metadata) == []
    store.put_registration(REGISTRATION)
    store.note_install(INSTALL, None)
    SCHEMA.downgrade(store.engine, "0002")
    assert "bridge_instances" not in sa.inspect(store.engine).get_table_names()
    SCHEMA.upgrade(store.engine)
    assert store.load_registrations() == [REGISTRATION], "going back and forth loses no device"
    assert store.open_installs() == [INSTALL]
    with store.engine.connect() as connection:
        assert connection.scalar(sa.select(installs.c.endpoint)) == "node-1"
    SCHEMA.downgrade(store.engine, "base")
    assert sa.inspect(store.engine).get_table_names() == ["bridge_schema_version"]
    SCHEMA.upgrade(store.engine)
    assert store.load_registrations() == []
    store.close()


def test_what_is_put_is_found_again_changed_and_removed(database_url: str) -> None:
    store = SqlStore(database_url)
    moved = replace(REGISTRATION, id="id-2", address="coap://127.0.0.1:9", updated_at=3.0)
    store.write_registrations({"node-1": REGISTRATION})
    store.write_registrations({"node-1": moved, "node-2": replace(REGISTRATION, endpoint="node-2", id="id-3")})
    assert {found.id for found in store.load_registrations()} == {"id-2", "id-3"}
    store.write_registrations({"node-1": None, "node-3": None})
    assert [found.endpoint for found in store.load_registrations()] == ["node-2"]
    store.note_install(INSTALL, None)
    store.note_install(replace(INSTALL, step=Step.DOWNLOADING), None)
    assert store.open_installs() == [replace(INSTALL, step=Step.DOWNLOADING)] == [store.get_install("i-1")]
    store.note_install(replace(INSTALL, step=Step.READY), None)
    assert store.open_installs() == []
    event = InstallEvent(
        "i-1", Step.FAILED, 1.5, 0, 10, 10, "done", Failure("INTERNAL", "SOME_REASON", "x", "y", {"a": "b"})
    )
    store.note_install(None, event)
    assert store.events("i-1") == [event]
    record = BootstrapRecord("node-1", BootstrapState.FINISHED, "coap://127.0.0.1:1", 1.0, 2.0)
    store.put_bootstrap(record)
    assert store.get_bootstrap("node-1") == record
    store.close()


def test_keys_are_kept_on_each_kind_of_database(database_url: str) -> None:
    store = SqlStore(database_url)
    mine, theirs = (DeviceKeys(SqlKeyStore(store.engine, bytes(32)), lambda: 5.0) for _ in range(2))
    key, secret = mine.create("node-1")
    assert theirs.resolve(key.identity.encode()) == (key, secret)
    assert not theirs.has("node-1")
    theirs.refresh()
    assert theirs.has("node-1"), "keys of other instances are seen at the next refresh"
    mine.delete(key.identity)
    theirs.refresh()
    assert not theirs.has("node-1")
    store.close()


def test_a_device_is_the_instance_s_that_received_its_last_registration(database_url: str) -> None:
    one, two = SqlStore(database_url, "one"), SqlStore(database_url, "two")
    fleets = [FleetStore(store, 3600) for store in (one, two)]
    for fleet, address in zip(fleets, ("one:1", "two:1"), strict=True):
        fleet.leases.take(address)
    later = replace(REGISTRATION, id="id-2", updated_at=9.0)
    one.put_registration(REGISTRATION)
    one.note_install(INSTALL, None)
    assert fleets[1].owner("node-1") == Owner("one", "one:1")
    assert fleets[0].owner("node-1") is None
    two.put_registration(later)
    one.put_registration(replace(REGISTRATION, updated_at=8.0))
    one.delete_registration("node-1")
    assert one.load_registrations() == [], "a late write of who had it takes nothing back"
    assert two.load_registrations() == [later]
    assert fleets[0].owner("node-1") == Owner("two", "two:1")
    assert fleets[0].gone() == ["node-1"]
    assert fleets[1].installing("node-1") == "one"
    assert fleets[1].take_installs() == [], "the install is its runner's until that one lets go"
    fleets[0].let_go(["node-1"])
    assert fleets[0].gone() == []
    assert fleets[1].installing("node-1") is None
    assert fleets[1].take_installs() == [INSTALL]
    assert fleets[1].take_installs() == []
    one.note_install(replace(INSTALL, step=Step.FAILED), None)
    assert two.open_installs() == [INSTALL], "who let go of an install writes no more of it"
    one.close()
    two.close()


def test_what_a_dead_instance_left_is_taken_once(database_url: str) -> None:
    stores = [SqlStore(database_url, name) for name in ("dead", "one", "two")]
    dead, one, two = (FleetStore(store, 3600) for store in stores)
    dead.leases.take()
    stores[0].put_registration(REGISTRATION)
    stores[0].note_install(INSTALL, None)
    assert one.adopt("dead") == ([], []), "one that lives keeps what it has"
    dead.leases.release()
    assert one.leases.expired() == ["dead"]
    assert one.adopt("dead") == ([REGISTRATION], [INSTALL])
    assert two.adopt("dead") == ([], [])
    assert one.leases.expired() == []
    dead.leases.take()
    assert dead.gone() == ["node-1"], "one that comes back learns what it has lost"
    for store in stores:
        store.close()


def test_who_had_a_device_first_learns_of_it_though_it_was_taken_over_twice(database_url: str) -> None:
    """DO-BRIDGE-012, 013: the first instance was slow, and the one that took its devices died."""
    stores = [SqlStore(database_url, name) for name in ("first", "second", "third")]
    first, second, third = (FleetStore(store, 3600) for store in stores)
    for fleet in (first, second, third):
        fleet.leases.take()
    stores[0].put_registration(REGISTRATION)
    heard = {"node-1": REGISTRATION.updated_at}
    first.leases.release()
    assert second.adopt("first") == ([REGISTRATION], [])
    second.leases.release()
    assert third.adopt("second") == ([REGISTRATION], [])
    assert (first.gone(), first.elsewhere(heard)) == (["node-1"], ["node-1"])
    assert second.elsewhere(heard) == ["node-1"], "one whose lease ran out asks for all that it had"
    assert third.elsewhere(heard) == []
    assert second.elsewhere({"node-1": REGISTRATION.updated_at + 1}) == [], (
        "heard here since, on its way to the database"
    )
    assert second.elsewhere({f"node-{number}": 0.0 for number in range(2, 2500)}) == []
    assert first.take_back({"node-1": replace(REGISTRATION, id="before")}) == set()
    assert first.take_back({"node-1": REGISTRATION}) == {"node-1"}
    assert (first.gone(), third.gone()) == ([], ["node-1"])
    third.let_go(["node-1"])
    assert (third.gone(), first.elsewhere(heard)) == ([], [])
    for store in stores:
        store.close()


def test_a_database_from_before_migrations_is_taken_over_with_its_rows(tmp_path: Path) -> None:
    """DO-BRIDGE-007."""
    url = f"sqlite:///{tmp_path / 'bridge.db'}"
    first = SqlStore(url)
    first.put_registration(REGISTRATION)
    SCHEMA.downgrade(first.engine, "0001")
    with first.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE bridge_schema_version"))
        connection.execute(sa.text("CREATE TABLE bridge_schema (version INTEGER PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO bridge_schema VALUES (1)"))
    first.close()
    second = SqlStore(url)
    assert second.load_registrations() == [REGISTRATION]
    assert "bridge_schema" not in sa.inspect(second.engine).get_table_names()
    second.close()


def test_a_database_that_is_up_to_date_is_opened_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bridge.db'}"
    SqlStore(url).close()
    store = SqlStore(url)
    assert store.load_registrations() == []
    store.close()
