"""Servicers: messages in, core, messages out."""

from .access import ApiKeysServicer, AuditLogServicer, ProjectsServicer
from .artifacts import ArtifactsServicer
from .devices import DevicesServicer
from .models import ModelsServicer
from .modules import ModulesServicer
from .plugins import PluginsServicer

__all__ = [
    "ApiKeysServicer",
    "ArtifactsServicer",
    "AuditLogServicer",
    "DevicesServicer",
    "ModelsServicer",
    "ModulesServicer",
    "PluginsServicer",
    "ProjectsServicer",
]
