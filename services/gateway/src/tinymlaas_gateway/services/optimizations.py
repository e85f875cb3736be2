"""The Optimizations service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tinymlaas.gateway.v1 import optimizations_pb2, optimizations_pb2_grpc

from ..engine.context import Context
from ..engine.fairness import on_behalf_of
from ..engine.optimizing import optimized, required
from ..engine.ports import Sign
from .types import ServicerContext


class OptimizationsServicer(optimizations_pb2_grpc.OptimizationsServicer):
    """Maps calls to the engine."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def OptimizeModel(
        self, request: optimizations_pb2.OptimizeModelRequest, context: ServicerContext
    ) -> AsyncIterator[optimizations_pb2.OptimizeModelResponse]:
        """Progress, then the version that was made. Cancelling the call cancels the optimizer's work."""
        version = await self._context.catalogue.model_version(request.model_version, patience=5.0)
        required(self._context, request.options, request.samples_sha256)
        loop = asyncio.get_running_loop()
        # Only the newest sign waits: a slow reader sees fewer steps, and nothing piles up.
        latest: list[Sign] = []
        heard = asyncio.Event()

        def listen(sign: Sign) -> None:
            latest[:] = [sign] if sign.step else latest
            loop.call_soon_threadsafe(heard.set)

        with on_behalf_of(request.model_version):
            work = asyncio.ensure_future(
                optimized(self._context, version, request.options, request.samples_sha256, listen)
            )
        work.add_done_callback(lambda _: heard.set())
        try:
            while not work.done():
                await heard.wait()
                heard.clear()
                if latest:
                    sign = latest.pop()
                    yield optimizations_pb2.OptimizeModelResponse(
                        progress=optimizations_pb2.OptimizeModelProgress(step=sign.step, fraction=sign.fraction)
                    )
            yield optimizations_pb2.OptimizeModelResponse(result=work.result())
        finally:
            work.cancel()
