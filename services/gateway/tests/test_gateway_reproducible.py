"""The same parts are sealed into the same module, with the same id, in processes as unlike as two machines."""

from __future__ import annotations

from pathlib import Path

from tinymlaas_pluginkit.unlike import in_unlike_processes

CODE = """
import hashlib
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import struct_pb2
from tinymlaas.module.v1 import manifest_pb2
from tinymlaas.plugin.v1 import compiler_pb2, profiler_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_gateway.core.sealing import seal
import tinymlaas_module as tim

payload = bytes(range(256)) * 4
spec = {"dtype": tensor_pb2.DATA_TYPE_INT8, "shape": [1, 4], "scale": 0.5, "zero_point": -3}
numerics = tensor_pb2.Numerics(reference=tensor_pb2.REFERENCE_TFLITE, **{"class": tensor_pb2.Numerics.CLASS_BIT_EXACT})
parts = compiler_pb2.CompileResult(
    payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, payload_bytes=len(payload),
    payload_sha256=hashlib.sha256(payload).digest(), arena_bytes=1024, arena_alignment=16, numerics=numerics,
    operators=["SOFTMAX", "ADD"], inputs=[tensor_pb2.TensorSpec(name="i", **spec)],
    outputs=[tensor_pb2.TensorSpec(name="o", **spec)],
)
options = struct_pb2.Struct()
options.update({"one": 1, "two": {"b": True, "a": "x"}, "three": [1, "2"]})
measurement = measurement_pb2.Measurement(
    metric=measurement_pb2.METRIC_INSTRUCTIONS, value=5, unit="instructions", method=measurement_pb2.METHOD_SIMULATED,
    tool="t", tool_version="1", conditions={name: name for name in {"cpu", "samples", "reference", "bound"}},
)
manifest = manifest_pb2.Manifest(
    model_sha256="00" * 32, request_sha256="11" * 32, plugin_name="x.y", plugin_version="1", options=options,
    numerics=numerics, measurements=[measurement], operators=sorted({"ADD", "SOFTMAX"}),
)
values = profiler_pb2.InputSet(samples=[tensor_pb2.TensorValues(tensors=[b"abcd"])])
sealed = seal(
    name="m", version="1", parts=parts, payload=payload, golden_inputs=values, golden_outputs=values,
    manifest=manifest, security_counter=1, key=Ed25519PrivateKey.from_private_bytes(bytes(32)),
)
print(sealed.sha256, sealed.device_sha256, tim.identity(tim.parse(sealed.image)))
"""


def test_unlike_processes_seal_the_same_module(tmp_path: Path) -> None:
    first, second = in_unlike_processes(CODE, tmp_path)
    assert first == second
    assert len(first.split()) == 3
