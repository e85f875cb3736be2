"""Run the gateway: `python -m tinymlaas_gateway`, configured by TINYMLAAS_* variables."""

from __future__ import annotations

import asyncio

import structlog

from tinymlaas_servicekit import configure_logging, configure_tracing, serve_until_signal

from .app import Gateway
from .settings import GatewaySettings


async def _serve(settings: GatewaySettings) -> None:
    async with Gateway(settings).running() as server:
        await serve_until_signal(server)


def main() -> None:
    """Serve until SIGTERM; unfinished work goes on at the next start."""
    settings = GatewaySettings()  # type: ignore[call-arg]
    configure_logging(settings)
    configure_tracing(settings, "tinymlaas-gateway")
    structlog.contextvars.bind_contextvars(service="tinymlaas-gateway")
    asyncio.run(_serve(settings))


if __name__ == "__main__":
    main()
