"""The Routing service."""

from __future__ import annotations

from tinymlaas.gateway.v1 import routing_pb2, routing_pb2_grpc
from tinymlaas_servicekit import FieldViolation, InvalidArgument

from ..core.firmware import device_target, linked_target
from ..engine.context import Context
from ..engine.explain import Place, explain
from ..engine.fairness import on_behalf_of
from .requests import project_in
from .types import ServicerContext

MAX_DESTINATIONS = 1000


class RoutingServicer(routing_pb2_grpc.RoutingServicer):
    """Maps calls to the engine."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def Explain(
        self, request: routing_pb2.ExplainRequest, context: ServicerContext
    ) -> routing_pb2.ExplainResponse:
        """Every pair of compiler and destination: admitted, or why not and the smallest change that would admit it."""
        project = project_in(request.parent)
        if len(request.destinations) > MAX_DESTINATIONS:
            raise InvalidArgument(
                f"{len(request.destinations)} destinations, at most {MAX_DESTINATIONS} are allowed",
                "LIMIT_EXCEEDED",
                {"limit": "destinations", "max": MAX_DESTINATIONS},
            )
        for index, name in enumerate([request.model_version, *(item.device for item in request.destinations)]):
            if name and name.split("/")[1] != project:
                field = "model_version" if index == 0 else f"destinations[{index - 1}].device"
                raise InvalidArgument(
                    f"{name} belongs to another project",
                    "PROJECT_MISMATCH",
                    {"field": field},
                    violations=[FieldViolation(field, "belongs to another project")],
                )
        with on_behalf_of(request.parent):
            async with self._context.call_places.taken():
                return await self._explain(project, request)

    async def _explain(self, project: str, request: routing_pb2.ExplainRequest) -> routing_pb2.ExplainResponse:
        version = await self._context.catalogue.model_version(request.model_version, patience=5.0)
        places = await self._places(project, request)
        explanation = await explain(self._context, version, places, routing_only=request.routing_only)
        response = routing_pb2.ExplainResponse(
            targets=[place.target for place in places],
            verdicts=explanation.verdicts,
            unreachable=explanation.unreachable,
        )
        for place in places:
            if place.device is not None:
                response.destinations.add(device=place.device.name)
            else:
                response.destinations.add(target=place.target)
        return response

    async def _places(self, project: str, request: routing_pb2.ExplainRequest) -> list[Place]:
        if not request.destinations:
            found = await self._context.catalogue.devices(project)
            return [Place(device_target(device), device) for device in found]
        places = []
        for item in request.destinations:
            if item.WhichOneof("destination") == "device":
                device = await self._context.catalogue.device(item.device)
                places.append(Place(device_target(device), device))
            else:
                places.append(Place(linked_target(item.target)))
        return places
