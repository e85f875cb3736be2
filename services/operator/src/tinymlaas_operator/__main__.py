"""Run the operator: `python -m tinymlaas_operator [run | secrets]`, configured by `TINYMLAAS_*` variables.

`run` (the default) watches CompilerPlugin resources; `secrets` makes the release's Secrets and ends.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress

import structlog

from tinymlaas_servicekit import GrpcServer, configure_logging, configure_tracing, serve_until_signal

from . import secrets_job
from .adapters.kubernetes_api import KubernetesCluster, find_server, own_namespace
from .adapters.probe import GrpcProber
from .core.objects import Surroundings
from .reconcile import Reconciler, run_forever
from .settings import OperatorSettings

NAME = "tinymlaas-operator"


async def serve(settings: OperatorSettings, cluster: KubernetesCluster, namespace: str) -> None:
    """Rounds until SIGTERM; health says SERVING while they succeed."""
    tls = settings.tls()
    around = Surroundings(
        namespace,
        settings.instance,
        settings.manifest_secret,
        settings.runtime_class,
        settings.max_replicas,
        "" if tls is None else settings.plugin_tls_prefix,
        settings.tls_domain,
    )
    reconciler = Reconciler(cluster, GrpcProber(tls), around, settings.trusted_images)
    server = GrpcServer(settings, lambda _: ())

    async def beat(good: bool) -> None:
        await server.set_serving("", good)

    rounds = asyncio.create_task(run_forever(reconciler, settings.round_seconds, beat))
    try:
        await serve_until_signal(server)
    finally:
        rounds.cancel()
        with suppress(asyncio.CancelledError):
            await rounds


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("run", "secrets"), default="run")
    action = parser.parse_args().action
    settings = OperatorSettings()
    configure_logging(settings)
    configure_tracing(settings, NAME)
    structlog.contextvars.bind_contextvars(service=NAME)
    namespace = settings.namespace or own_namespace()
    cluster = KubernetesCluster(find_server(settings.api_server), namespace)
    if action == "secrets":
        labels = {"app.kubernetes.io/instance": settings.instance, "app.kubernetes.io/part-of": "tinymlaas"}
        secrets_job.run(cluster, settings.generated_secret, settings.manifest_secret, labels)
        return
    asyncio.run(serve(settings, cluster, namespace))


if __name__ == "__main__":
    main()
