"""Which RPC needs what, and which role grants it, as the protos declare it (spec/access.md)."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tinymlaas.type.v1 import access_pb2
from tinymlaas_servicekit.access import access_table, contract_services, permissions_of, role_name, role_named
from tinymlaas_servicekit.validation import contract_modules

METHODS = [f"/{service.full_name}/{method.name}" for service in contract_services() for method in service.methods]


@pytest.mark.parametrize("method", METHODS)
def test_every_rpc_declares_what_its_caller_needs(method: str) -> None:
    assert method in access_table(), f"{method} lacks option (tinymlaas.type.v1.access) in its proto"


def test_only_plugins_are_looked_at_by_whoever_has_a_role_anywhere() -> None:
    anywhere = {method for method, access in access_table().items() if access.scope == access_pb2.SCOPE_ANY_PROJECT}
    assert anywhere == {"/tinymlaas.registry.v1.Plugins/GetPlugin", "/tinymlaas.registry.v1.Plugins/ListPlugins"}


def test_no_role_may_call_what_services_call_and_an_admin_may_all_else() -> None:
    everything = set(access_pb2.Permission.values()) - {access_pb2.PERMISSION_UNSPECIFIED}
    granted = permissions_of(role for role in access_pb2.Role.values() if role)
    assert granted == everything - {access_pb2.PERMISSION_SERVICE} == permissions_of([access_pb2.ROLE_ADMIN])


def test_roles_have_the_names_that_people_write() -> None:
    roles = [role for role in access_pb2.Role.values() if role]
    assert [role_name(role) for role in roles] == ["viewer", "operator", "admin", "vendor", "device-admin"]
    assert [role_named(role_name(role)) for role in roles] == roles
    assert role_named("unspecified") is None
    assert role_named("ROLE_ADMIN") is None


def test_every_field_that_holds_a_secret_is_left_out_of_logs() -> None:
    fields: list[FieldDescriptor] = [
        field
        for module in contract_modules()
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.name in ("secret", "token", "password", "private_key", "secret_sha256")
    ]
    assert fields
    assert [field.full_name for field in fields if not field.GetOptions().debug_redact] == []
