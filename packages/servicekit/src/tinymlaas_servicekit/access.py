"""Who may call what, as the protos declare it: the option `access` of each RPC, and what each role grants.

The declarations are in protos/tinymlaas/type/v1/access.proto and at each `rpc` of our contracts. Nothing is repeated here
but what foreign services need, which cannot carry our option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from google.protobuf.descriptor import ServiceDescriptor

from tinymlaas.type.v1 import access_pb2

from .validation import contract_modules

Permission: TypeAlias = access_pb2.Permission.ValueType
Role: TypeAlias = access_pb2.Role.ValueType

READ_PERMISSIONS = frozenset({access_pb2.PERMISSION_READ, access_pb2.PERMISSION_READ_PLUGINS})
# google.longrunning.Operations over builds and deployments: what the same calls on those need.
_FOREIGN = {
    "/google.longrunning.Operations/GetOperation": access_pb2.PERMISSION_READ,
    "/google.longrunning.Operations/ListOperations": access_pb2.PERMISSION_READ,
    "/google.longrunning.Operations/WaitOperation": access_pb2.PERMISSION_READ,
    "/google.longrunning.Operations/CancelOperation": access_pb2.PERMISSION_OPERATE,
    "/google.longrunning.Operations/DeleteOperation": access_pb2.PERMISSION_ADMINISTER,
}


@dataclass(frozen=True)
class Access:
    """What one RPC needs: a permission, where it must be held, and which services may call it besides the gateway."""

    permission: Permission
    scope: access_pb2.Scope.ValueType
    callers: frozenset[str]
    changes: bool


@lru_cache(maxsize=1)
def access_table() -> Mapping[str, Access]:
    """What every RPC needs, by full method name ("/package.Service/Method"); RPCs that declare nothing are not in it."""
    declared = {
        f"/{service.full_name}/{method.name}": option
        for service in contract_services()
        for method in service.methods
        if (option := method.GetOptions().Extensions[access_pb2.access]).permission
    }
    foreign = {method: access_pb2.Access(permission=permission) for method, permission in _FOREIGN.items()}
    return {
        method: Access(
            option.permission,
            option.scope,
            frozenset(option.callers),
            not option.reads_only and option.permission not in READ_PERMISSIONS,
        )
        for method, option in {**declared, **foreign}.items()
    }


@lru_cache(maxsize=1)
def contract_services() -> tuple[ServiceDescriptor, ...]:
    """Every service of our contracts."""
    return tuple(service for module in contract_modules() for service in module.DESCRIPTOR.services_by_name.values())


@lru_cache(maxsize=1)
def _grants() -> Mapping[Role, frozenset[Permission]]:
    enum: Any = access_pb2.Role.DESCRIPTOR
    return {
        value.number: frozenset(value.GetOptions().Extensions[access_pb2.grants])
        for value in enum.values
        if value.number
    }


def permissions_of(roles: Iterable[Role]) -> frozenset[Permission]:
    """What the roles grant together; roles that this version does not know grant nothing."""
    return frozenset().union(*(_grants().get(role, frozenset()) for role in roles))


def roles_with(permission: Permission) -> list[str]:
    """Names of the roles that grant a permission."""
    return [role_name(role) for role, granted in _grants().items() if permission in granted]


def role_name(role: Role) -> str:
    """A role as people write it: "viewer", "device-admin"."""
    return access_pb2.Role.Name(role).removeprefix("ROLE_").lower().replace("_", "-")


def role_named(name: str) -> Role | None:
    """The role that people write so, None for another word."""
    return next((role for role in _grants() if role_name(role) == name), None)
