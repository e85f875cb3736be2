"""The registry: models, modules, devices and plugins, and artifacts by digest. It records and decides nothing."""

from .app import Registry, build_registry
from .settings import RegistrySettings

__all__ = ["Registry", "RegistrySettings", "build_registry"]
