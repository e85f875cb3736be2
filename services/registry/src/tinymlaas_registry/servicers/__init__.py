"""Servicers: messages in, core, messages out."""

from .artifacts import ArtifactsServicer
from .devices import DevicesServicer
from .models import ModelsServicer
from .modules import ModulesServicer
from .plugins import PluginsServicer

__all__ = ["ArtifactsServicer", "DevicesServicer", "ModelsServicer", "ModulesServicer", "PluginsServicer"]
