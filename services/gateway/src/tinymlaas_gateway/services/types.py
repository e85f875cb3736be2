"""Types of gRPC that its stubs make generic and its runtime does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

if TYPE_CHECKING:
    ServicerContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    RpcMethodHandler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    ServicerContext = grpc.aio.ServicerContext
    RpcMethodHandler = grpc.RpcMethodHandler

__all__ = ["RpcMethodHandler", "ServicerContext"]
