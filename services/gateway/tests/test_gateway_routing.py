"""Routing is a pure function: tables for what it says, properties for what always holds."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import routing_pb2
from tinymlaas.plugin.v1 import compiler_pb2, identity_pb2, importer_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_gateway.core import routing
from tinymlaas_gateway.core.objections import status
from tinymlaas_gateway.core.routing import ModelFacts
from tinymlaas_module import Requirement

Region = target_pb2.MemoryRegion
NATIVE, TFLITE = target_pb2.PAYLOAD_KIND_NATIVE, target_pb2.PAYLOAD_KIND_TFLITE
ONNX_FORMAT, TFLITE_FORMAT = tensor_pb2.MODEL_FORMAT_ONNX, tensor_pb2.MODEL_FORMAT_TFLITE
MODEL = ModelFacts(ONNX_FORMAT, 1000)


def target(ram: int = 32768, flash: int = 131072, **fields: Any) -> target_pb2.Target:
    defaults: dict[str, Any] = {
        "cpu": "cortex-m4",
        "isa": "armv7e-m",
        "features": ["thumb2", "dsp"],
        "memory_regions": [
            Region(name="sram0", kind=Region.KIND_RAM, total_bytes=ram, free_bytes=ram),
            Region(name="flash0", kind=Region.KIND_FLASH, total_bytes=flash, free_bytes=flash),
        ],
        "payload_kinds": [NATIVE],
        "loader_abi": 1,
    }
    return target_pb2.Target(**{**defaults, **fields})


def constraint(**fields: Any) -> target_pb2.TargetConstraint:
    return target_pb2.TargetConstraint(**{"payload_kind": NATIVE, **fields})


def plugin(*constraints: target_pb2.TargetConstraint, **fields: Any) -> plugins_pb2.Plugin:
    defaults: dict[str, Any] = {
        "name": "plugins/io.example.c",
        "state": plugins_pb2.Plugin.STATE_READY,
        "capabilities": ["role.compiler"],
        "limits": identity_pb2.Limits(max_model_bytes=1 << 20, max_concurrency=1, max_seconds=1),
        "compiler": compiler_pb2.ListTargetsResponse(targets=constraints, model_formats=[ONNX_FORMAT]),
    }
    return plugins_pb2.Plugin(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("given_constraint", "given_target", "remedy"),
    [
        (constraint(isas=["rv32imc"]), target(), "needs one of rv32imc"),
        (constraint(required_features=["dsp", "mve"]), target(), "needs the mve feature"),
        (constraint(accelerator="ethos-u55-128"), target(), "needs the accelerator ethos-u55-128"),
        (constraint(payload_kind=TFLITE), target(), "needs firmware whose loader accepts payload kind tflite"),
        (constraint(runtime="tflite-micro"), target(), "needs the runtime tflite-micro in the firmware"),
        (constraint(loader_abi=2), target(), "needs firmware with native loader ABI 2"),
        (constraint(min_ram_bytes=32768 + 12288), target(), "needs 12,288 B more RAM"),
        (constraint(min_flash_bytes=131073), target(), "needs 1 B more flash"),
    ],
)
def test_each_constraint_that_does_not_hold_names_the_smallest_change(
    given_constraint: target_pb2.TargetConstraint, given_target: target_pb2.Target, remedy: str
) -> None:
    objections, _ = routing.match(given_target, given_constraint)
    assert [item.remedy for item in objections] == [remedy]


def test_a_constraint_without_demands_admits_every_target_of_its_payload_kind() -> None:
    assert routing.match(target(), constraint()) == ([], [])


def test_unknown_free_bytes_count_as_all_and_the_verdict_says_so() -> None:
    unknown = target(memory_regions=[Region(name="sram0", kind=Region.KIND_RAM, total_bytes=1000)])
    objections, assumptions = routing.fit_objections(unknown, ram_bytes=1000, flash_bytes=5, basis="claim")
    assert objections == []
    assert assumptions == [
        "free RAM of sram0 unknown: all of its 1,000 B taken",
        "the target states no flash: 5 B taken to fit",
    ]


def test_a_device_that_claims_more_free_than_there_is_gets_no_more_than_there_is() -> None:
    lying = target(memory_regions=[Region(name="s", kind=Region.KIND_RAM, total_bytes=100, free_bytes=10**6)])
    objections, _ = routing.fit_objections(lying, ram_bytes=101, flash_bytes=0, basis="claim")
    assert objections[0].metadata["have"] == "100"


def test_a_module_is_not_spread_over_two_regions() -> None:
    two = target(memory_regions=[Region(name=n, kind=Region.KIND_RAM, total_bytes=600, free_bytes=600) for n in "ab"])
    objections, _ = routing.fit_objections(two, ram_bytes=1000, flash_bytes=0, basis="claim")
    assert [item.remedy for item in objections] == ["needs 400 B more RAM"]


def test_the_verdict_tells_of_the_constraint_that_comes_closest() -> None:
    verdict = routing.judge(3, target(), plugin(constraint(isas=["rv32imc"]), constraint(min_ram_bytes=40000)), MODEL)
    assert not verdict.admitted
    assert verdict.destination == 3
    assert [item.remedy for item in verdict.objections] == ["needs 7,232 B more RAM"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"state": plugins_pb2.Plugin.STATE_QUARANTINED, "refuted_claims": 3}, "PLUGIN_QUARANTINED"),
        ({"state": plugins_pb2.Plugin.STATE_LOADING}, "PLUGIN_UNAVAILABLE"),
        ({"limits": identity_pb2.Limits(max_model_bytes=10)}, "LIMIT_EXCEEDED"),
        (
            {"compiler": compiler_pb2.ListTargetsResponse(targets=[constraint()], model_formats=[TFLITE_FORMAT])},
            "FORMAT_UNSUPPORTED",
        ),
        ({"compiler": compiler_pb2.ListTargetsResponse(model_formats=[ONNX_FORMAT])}, "TARGET_UNSUPPORTED"),
    ],
)
def test_a_plugin_that_cannot_take_part_is_told_apart_by_reason(fields: dict[str, Any], reason: str) -> None:
    verdict = routing.judge(0, target(), plugin(constraint(), **fields), MODEL)
    assert [item.reason for item in verdict.objections] == [reason]
    assert verdict.objections[0].remedy


def test_an_importer_lifts_the_objection_against_the_format() -> None:
    conversion = importer_pb2.Conversion(to=TFLITE_FORMAT)
    setattr(conversion, "from", ONNX_FORMAT)
    compiler = compiler_pb2.ListTargetsResponse(targets=[constraint()], model_formats=[TFLITE_FORMAT])
    assert routing.judge(0, target(), plugin(compiler=compiler), MODEL, [conversion]).admitted


def test_nobody_is_told_to_accept_source_packages_as_modules() -> None:
    source = constraint(payload_kind=target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE)
    tflite = constraint(payload_kind=TFLITE, runtime="tflite-micro")
    verdict = routing.judge(0, target(), plugin(source, tflite), MODEL)
    assert {item.metadata["value"] for item in verdict.objections} == {"tflite", "tflite-micro"}
    wants_source = target(payload_kinds=[target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE])
    assert routing.judge(0, wants_source, plugin(source, tflite), MODEL).admitted


def test_a_runtime_that_lacks_operators_is_told_with_all_that_it_needs() -> None:
    has_runtime = target(
        payload_kinds=[TFLITE], runtimes=[target_pb2.Runtime(name="tflite-micro", operators=["CONV_2D"])]
    )
    compiler = compiler_pb2.ListTargetsResponse(
        targets=[constraint(payload_kind=TFLITE, runtime="tflite-micro")], model_formats=[TFLITE_FORMAT]
    )
    model = ModelFacts(TFLITE_FORMAT, 10, {"CONV_2D": 5, "SOFTMAX": 1, "ADD": 2})
    verdict = routing.judge(0, has_runtime, plugin(compiler=compiler), model)
    assert {item.metadata["op"] for item in verdict.objections} == {"ADD", "SOFTMAX"}
    assert {item.remedy for item in verdict.objections} == {
        "needs the runtime tflite-micro with operators ADD, SOFTMAX"
    }


def test_a_peripheral_that_the_model_needs_is_asked_for_by_kind_or_object_id() -> None:
    model = ModelFacts(ONNX_FORMAT, 10, needs=("microphone", "3313"))
    verdict = routing.judge(0, target(), plugin(constraint()), model, (), ("accelerometer", "3313"))
    assert [item.remedy for item in verdict.objections] == ["needs a microphone"]


def check(**fields: Any) -> compiler_pb2.CheckModelResult:
    return compiler_pb2.CheckModelResult(**{"supported": True, **fields})


def estimate(metric: measurement_pb2.Metric.ValueType, value: float) -> measurement_pb2.Measurement:
    return measurement_pb2.Measurement(
        metric=metric, value=value, unit="B", method=measurement_pb2.METHOD_ESTIMATED, tool="t", tool_version="1"
    )


def test_estimates_that_do_not_fit_reject_and_are_marked_as_estimates() -> None:
    admitted = routing.judge(0, target(), plugin(constraint()), MODEL)
    estimates = [
        estimate(measurement_pb2.METRIC_ARENA_BYTES, 30000),
        estimate(measurement_pb2.METRIC_STACK_BYTES, 3000),
    ]
    verdict = routing.with_check(admitted, target(), check(estimates=estimates))
    assert not verdict.admitted
    assert verdict.objections[0].metadata["basis"] == "estimate"
    assert verdict.objections[0].remedy == "needs 232 B more RAM"
    assert len(verdict.estimates) == 2


def test_each_unsupported_operator_is_an_objection() -> None:
    operators = [
        compiler_pb2.OperatorSupport(operator="Gelu", nodes=["n7"], count=3, detail="no kernel", dtype="float32"),
        compiler_pb2.OperatorSupport(operator="Conv", count=9, supported=True),
    ]
    admitted = routing.judge(0, target(), plugin(constraint()), MODEL)
    verdict = routing.with_check(admitted, target(), check(supported=False, operators=operators))
    assert [item.reason for item in verdict.objections] == ["OP_UNSUPPORTED"]
    assert dict(verdict.objections[0].metadata) == {"op": "Gelu", "node": "n7", "dtype": "float32", "count": "3"}
    assert "without operator Gelu" in verdict.objections[0].remedy


def test_a_refusal_without_operators_keeps_the_reason_of_the_plugins_error() -> None:
    admitted = routing.judge(0, target(), plugin(constraint()), MODEL)
    error = status(9, "DOES_NOT_FIT", "too big", region="sram0", need=50000, have=32768)
    verdict = routing.with_check(admitted, target(), check(supported=False, error=error))
    assert verdict.objections[0].reason == "DOES_NOT_FIT"
    assert verdict.objections[0].remedy == "needs 17,232 B more sram0"
    bare = routing.with_check(admitted, target(), check(supported=False))
    assert bare.objections[0].reason == "CHECK_FAILED"


def test_hostile_answers_stay_small_and_printable() -> None:
    admitted = routing.judge(0, target(), plugin(constraint()), MODEL)
    operators = [
        compiler_pb2.OperatorSupport(operator="X" * 10000 + "\x1b[2J", detail="\n" * 5000) for _ in range(5000)
    ]
    figures = [
        estimate(measurement_pb2.METRIC_ARENA_BYTES, value) for value in (float("nan"), float("inf"), -1.0, 1e300)
    ]
    error = status_pb2.Status(code=9)
    error.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
    verdict = routing.with_check(
        admitted, target(), check(supported=False, operators=operators, estimates=figures, error=error)
    )
    assert len(verdict.objections) <= routing.MAX_OBJECTIONS
    assert verdict.ByteSize() < 64 * 1024
    assert list(verdict.estimates) == []
    assert all(text.isprintable() for item in verdict.objections for text in (item.message, item.remedy))


sizes = st.integers(min_value=0, max_value=1 << 22)
names = st.sampled_from(["armv6-m", "armv7e-m", "rv32imc"])
features = st.lists(st.sampled_from(["thumb2", "dsp", "fpu-sp", "mve"]), unique=True)
targets = st.builds(
    lambda ram, flash, isa, have, kinds, abi, runtime: target(
        ram, flash, isa=isa, features=have, payload_kinds=kinds, loader_abi=abi, runtimes=runtime
    ),
    sizes,
    sizes,
    names,
    features,
    st.lists(st.sampled_from([NATIVE, TFLITE]), unique=True),
    st.integers(0, 2),
    st.sampled_from([[], [target_pb2.Runtime(name="tflite-micro")]]),
)
constraints = st.builds(
    lambda isas, need, kind, abi, runtime, ram, flash: constraint(
        isas=isas,
        required_features=need,
        payload_kind=kind,
        loader_abi=abi,
        runtime=runtime,
        min_ram_bytes=ram,
        min_flash_bytes=flash,
    ),
    st.lists(names, unique=True),
    features,
    st.sampled_from([NATIVE, TFLITE]),
    st.integers(0, 2),
    st.sampled_from(["", "tflite-micro"]),
    sizes,
    sizes,
)


@given(targets, st.lists(constraints, min_size=1, max_size=3), sizes, sizes)
def test_more_memory_never_rejects(
    small: target_pb2.Target, given_constraints: list[target_pb2.TargetConstraint], ram: int, flash: int
) -> None:
    big = target_pb2.Target()
    big.CopyFrom(small)
    for region, more in zip(big.memory_regions, (ram, flash), strict=True):
        region.total_bytes += more
        region.free_bytes += more
    before = routing.judge(0, small, plugin(*given_constraints), MODEL)
    after = routing.judge(0, big, plugin(*given_constraints), MODEL)
    assert after.admitted or not before.admitted


def changed(original: target_pb2.Target, objections: Any) -> target_pb2.Target:
    """The target after the change that each objection asks for, read from its metadata as a program would."""
    result = target_pb2.Target()
    result.CopyFrom(original)
    for item in objections:
        kind, value = item.metadata["constraint"], item.metadata.get("value", "")
        if item.reason == "DOES_NOT_FIT":
            for region in result.memory_regions:
                if region.name == item.metadata["region"]:
                    more = int(item.metadata["need"]) - int(item.metadata["have"])
                    region.total_bytes += more
                    region.free_bytes += more
        elif kind == "isa":
            result.isa = value.split(", ")[0]
        elif kind == "feature":
            result.features.append(value)
        elif kind == "payload_kind":
            result.payload_kinds.append({"native": NATIVE, "tflite": TFLITE}[value])
        elif kind == "runtime":
            result.runtimes.add(name=value)
        elif kind == "loader_abi":
            result.loader_abi = int(value)
        else:
            raise AssertionError(kind)
    return result


@given(targets, st.lists(constraints, min_size=1, max_size=3))
def test_a_target_changed_as_the_remedies_say_is_admitted(
    original: target_pb2.Target, given_constraints: list[target_pb2.TargetConstraint]
) -> None:
    verdict = routing.judge(0, original, plugin(*given_constraints), MODEL)
    better = changed(original, verdict.objections)
    assert routing.judge(0, better, plugin(*given_constraints), MODEL).admitted


@given(targets, st.lists(constraints, min_size=1, max_size=3))
def test_one_byte_less_than_the_remedy_asks_for_does_not_admit(
    original: target_pb2.Target, given_constraints: list[target_pb2.TargetConstraint]
) -> None:
    verdict = routing.judge(0, original, plugin(*given_constraints), MODEL)
    if len(verdict.objections) != 1 or verdict.objections[0].reason != "DOES_NOT_FIT":
        return
    short = routing_pb2.Objection()
    short.CopyFrom(verdict.objections[0])
    short.metadata["need"] = str(int(short.metadata["need"]) - 1)
    assert not routing.judge(0, changed(original, [short]), plugin(*given_constraints), MODEL).admitted


@given(
    arena=st.integers(0, 1 << 20),
    stack=st.integers(0, 1 << 16),
    image=st.integers(0, 1 << 20),
    alignment=st.sampled_from([1, 16, 64]),
    ram=st.integers(0, 1 << 20),
    flash=st.integers(0, 1 << 20),
)
def test_a_sealed_module_is_judged_by_the_same_numbers_as_the_claims_before_it(
    arena: int, stack: int, image: int, alignment: int, ram: int, flash: int
) -> None:
    """IM-FIT-007, IM-FIT-008: one decision, and a remedy that is exactly what is missing."""
    given_target = target(
        memory_regions=[
            Region(name="sram0", kind=Region.KIND_RAM, total_bytes=1 << 22, free_bytes=ram),
            Region(name="flash0", kind=Region.KIND_FLASH, total_bytes=1 << 22, free_bytes=flash),
        ]
    )
    sealed = routing.requirement_objections(given_target, Requirement(image, arena, alignment, stack), basis="verified")
    claimed = routing.fit_objections(given_target, ram_bytes=arena + stack, flash_bytes=image, basis="verified")
    assert sealed == claimed
    missing = {"ram": arena + stack - ram, "flash": image - flash}
    assert {item.metadata["constraint"]: item.remedy for item in sealed[0]} == {
        kind: f"needs {count:,} B more {'RAM' if kind == 'ram' else kind}"
        for kind, count in missing.items()
        if count > 0
    }
