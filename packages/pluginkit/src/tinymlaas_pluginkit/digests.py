"""The canonical digest of a request: what makes two requests the same (spec/compiler-plugin.md, section Determinism)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from google.protobuf import json_format

from tinymlaas.plugin.v1 import identity_pb2
from tinymlaas.type.v1 import target_pb2

CONTRACT_VERSION = "1.0"


def canonical_target(target: target_pb2.Target) -> target_pb2.Target:
    """The target without its label and with every set-like list sorted and free of repetitions."""
    canonical = target_pb2.Target()
    canonical.CopyFrom(target)
    canonical.ClearField("name")
    for message in (canonical, *canonical.runtimes):
        field = "features" if message is canonical else "operators"
        values = sorted(set(getattr(message, field)))
        message.ClearField(field)
        getattr(message, field).extend(values)
    kinds = sorted(set(canonical.payload_kinds))
    del canonical.payload_kinds[:]
    canonical.payload_kinds.extend(kinds)
    canonical.memory_regions.sort(key=lambda region: region.name)
    canonical.runtimes.sort(key=lambda runtime: (runtime.name, runtime.version))
    canonical.accelerators.sort(key=lambda accelerator: accelerator.name)
    return canonical


def request_digest(
    rpc: str,
    plugin: identity_pb2.GetPluginInfoResponse,
    model_sha256: bytes,
    *,
    target: target_pb2.Target | None = None,
    options: dict[str, Any] | None = None,
    model_format: int = 0,
    payload_kind: int = 0,
    more: dict[str, str] | None = None,
) -> str:
    """sha256 (hex) of the canonical JSON of a request: sorted keys, no white space, UTF-8.

    `options` are the checked ones, defaults filled in; `more` holds digests of further blobs by name.
    """
    content = {
        "contract": CONTRACT_VERSION,
        "rpc": rpc,
        "plugin": plugin.name,
        "vendor_version": plugin.vendor_version,
        "model_sha256": model_sha256.hex(),
        "model_format": model_format,
        "payload_kind": payload_kind,
        "target": None
        if target is None
        else json_format.MessageToDict(canonical_target(target), preserving_proto_field_name=True),
        "options": options or {},
        "more": more or {},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
