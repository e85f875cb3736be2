"""Device classes by name, for builds without a device: what a typical part of each CPU has."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from tinymlaas.type.v1 import target_pb2


def target_names() -> tuple[str, ...]:
    """Names that `named_target` knows."""
    return tuple(_catalogue())


def named_target(name: str, *, interpreter: bool = True) -> target_pb2.Target:
    """The device class of that name, with a native loader and, unless told otherwise, a TFLite Micro interpreter.

    Raises ValueError naming the known classes.
    """
    catalogue = _catalogue()
    if name not in catalogue:
        raise ValueError(f"unknown target {name!r}; known: {', '.join(catalogue)}")
    entry = catalogue[name]
    kinds = [target_pb2.PAYLOAD_KIND_NATIVE] + ([target_pb2.PAYLOAD_KIND_TFLITE] if interpreter else [])
    return target_pb2.Target(
        name=name,
        cpu=entry["cpu"],
        isa=entry["isa"],
        features=entry["features"],
        clock_hz=entry["clock_hz"],
        memory_regions=[
            target_pb2.MemoryRegion(name="ram", kind=target_pb2.MemoryRegion.KIND_RAM, total_bytes=entry["ram"]),
            target_pb2.MemoryRegion(name="flash", kind=target_pb2.MemoryRegion.KIND_FLASH, total_bytes=entry["flash"]),
        ],
        runtimes=[target_pb2.Runtime(name="tflite-micro")] if interpreter else [],
        payload_kinds=kinds,
        loader_abi=1,
    )


def _catalogue() -> dict[str, dict[str, Any]]:
    catalogue: dict[str, dict[str, Any]] = json.loads(
        resources.files("tinymlaas_client").joinpath("targets.json").read_text(encoding="utf-8")
    )
    return catalogue
