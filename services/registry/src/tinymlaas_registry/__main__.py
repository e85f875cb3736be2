"""Runs the registry: `python -m tinymlaas_registry`, configured by `TINYMLAAS_*` variables."""

from __future__ import annotations

import asyncio

import structlog

from tinymlaas_servicekit import configure_logging, configure_tracing, serve_until_signal

from .app import NAME, build_registry
from .settings import RegistrySettings


def main() -> None:
    """Serves until SIGTERM."""
    settings = RegistrySettings()
    configure_logging(settings)
    configure_tracing(settings, NAME)
    structlog.contextvars.bind_contextvars(service=NAME)
    asyncio.run(serve_until_signal(build_registry(settings)))


if __name__ == "__main__":
    main()
