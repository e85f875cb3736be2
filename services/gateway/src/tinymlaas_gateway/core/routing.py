"""Which compiler can serve which target, why not, and the smallest change that would admit it.

Pure: a verdict is a function of the target, what the plugin advertised, the model's facts and CheckModel's answer.
Two properties hold and are tested: more memory never turns an admitted pair into a rejected one, and a target changed
as the remedies say is admitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tinymlaas.gateway.v1 import routing_pb2
from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_module import DeviceMemory, Requirement, fit

from .objections import bytes_text, clean, error_info, kind_text, objection

MAX_OBJECTIONS = 32
COMPILER_ROLE = "role.compiler"
AWAY_REASON = "PLUGIN_UNAVAILABLE"
AWAY_REMEDY = "needs the plugin to run; try again when it is ready"

# How far a change reaches: a bigger number is a bigger change. New silicon weighs more than new firmware, and that
# more than freeing memory.
_DISTANCE = {"isa": 1000, "accelerator": 500, "feature": 300, "runtime": 20, "loader_abi": 20, "payload_kind": 20}
_MEMORY_DISTANCE = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What routing needs to know of a model.

    ``operators`` are counts by the names of ``format``. ``needs`` are peripherals that the model's input comes from, by
    kind ("microphone") or OMA object id ("3313"). ``size_bytes`` 0: unknown.
    """

    format: tensor_pb2.ModelFormat.ValueType
    size_bytes: int = 0
    operators: Mapping[str, int] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Space:
    """Memory of one kind that a module may use: the largest region, because a module is not spread over several."""

    region: str
    available: int
    assumed: bool


def space(target: target_pb2.Target, kind: target_pb2.MemoryRegion.Kind.ValueType) -> Space | None:
    """Return the region of ``kind`` with most room, or None when the target states none of that kind."""
    spaces = [
        Space(
            region=region.name,
            available=min(region.free_bytes, region.total_bytes)
            if region.HasField("free_bytes")
            else region.total_bytes,
            assumed=not region.HasField("free_bytes"),
        )
        for region in target.memory_regions
        if region.kind == kind
    ]
    return max(spaces, key=lambda item: (item.available, item.region), default=None)


def fit_objections(
    target: target_pb2.Target, *, ram_bytes: int, flash_bytes: int, basis: str
) -> tuple[list[routing_pb2.Objection], list[str]]:
    """Compare memory needs with what the target has free; return objections DOES_NOT_FIT and assumptions.

    ``basis`` says where the needs come from: "constraint", "estimate", "claim" or "verified". Needs of 0 or less are none.
    """
    return requirement_objections(target, Requirement(max(flash_bytes, 0), max(ram_bytes, 0), 1, 0), basis=basis)


def requirement_objections(
    target: target_pb2.Target, requirement: Requirement, *, basis: str
) -> tuple[list[routing_pb2.Objection], list[str]]:
    """Let ``tinymlaas_module.fit`` decide whether ``requirement`` fits the target; objections and assumptions as above.

    A target states neither erase unit nor how it aligns arenas, so neither costs anything here; the stack is taken from
    RAM. Where it states no memory of a kind, the need is taken to fit.
    """
    assumptions: list[str] = []
    regions: dict[str, str] = {}
    have: dict[str, int] = {}
    needs = {"RAM": requirement.arena_bytes + requirement.stack_bytes, "flash": requirement.image_bytes}
    kinds = {"RAM": target_pb2.MemoryRegion.KIND_RAM, "flash": target_pb2.MemoryRegion.KIND_FLASH}
    for label, need in needs.items():
        found = space(target, kinds[label])
        have[label] = need if found is None else found.available
        regions[label] = "" if found is None else found.region
        if need and found is None:
            assumptions.append(f"the target states no {label}: {bytes_text(need)} taken to fit")
        elif need and found is not None and found.assumed:
            assumptions.append(
                f"free {label} of {clean(found.region, 64)} unknown: all of its {bytes_text(found.available)} taken"
            )
    result = fit(
        requirement,
        DeviceMemory(
            flash_free=have["flash"], ram_free=have["RAM"], arena_alignment=max(requirement.arena_alignment, 1)
        ),
    )
    short = {item.region: item for item in result.regions if item.missing}
    return [
        objection(
            "DOES_NOT_FIT",
            f"needs {bytes_text(short[label].need)} of {label} ({basis}), {regions[label]} has"
            f" {bytes_text(short[label].have)}",
            f"needs {bytes_text(short[label].missing)} more {label}",
            constraint=label.lower(),
            region=regions[label],
            need=short[label].need,
            have=short[label].have,
            basis=basis,
        )
        for label in needs
        if label in short
    ], assumptions


def match(
    target: target_pb2.Target, constraint: target_pb2.TargetConstraint
) -> tuple[list[routing_pb2.Objection], list[str]]:
    """Match a target with a constraint; no objection means that it holds. Assumptions say what was unknown."""
    objections: list[routing_pb2.Objection] = []
    if constraint.isas and target.isa not in constraint.isas:
        isas = ", ".join(sorted(constraint.isas))
        objections.append(
            _unsupported("isa", isas, f"instruction set {target.isa or '(none)'} is not served", f"needs one of {isas}")
        )
    for feature in sorted(set(constraint.required_features) - set(target.features)):
        objections.append(_unsupported("feature", feature, f"the CPU lacks {feature}", f"needs the {feature} feature"))
    if constraint.accelerator and constraint.accelerator not in {unit.name for unit in target.accelerators}:
        name = constraint.accelerator
        objections.append(_unsupported("accelerator", name, f"no accelerator {name}", f"needs the accelerator {name}"))
    if constraint.payload_kind not in target.payload_kinds:
        kind = kind_text(constraint.payload_kind)
        objections.append(
            _unsupported(
                "payload_kind",
                kind,
                f"payload kind {kind} is not accepted by the device's loader",
                f"needs firmware whose loader accepts payload kind {kind}",
            )
        )
    if constraint.runtime and constraint.runtime not in {runtime.name for runtime in target.runtimes}:
        name = constraint.runtime
        objections.append(
            _unsupported(
                "runtime", name, f"the firmware has no runtime {name}", f"needs the runtime {name} in the firmware"
            )
        )
    if constraint.loader_abi > target.loader_abi:
        objections.append(
            _unsupported(
                "loader_abi",
                str(constraint.loader_abi),
                f"native loader ABI {constraint.loader_abi} needed, the device has {target.loader_abi}",
                f"needs firmware with native loader ABI {constraint.loader_abi}",
            )
        )
    memory, assumptions = fit_objections(
        target, ram_bytes=constraint.min_ram_bytes, flash_bytes=constraint.min_flash_bytes, basis="constraint"
    )
    return objections + memory, assumptions


def _unsupported(constraint: str, value: str, message: str, remedy: str) -> routing_pb2.Objection:
    return objection("TARGET_UNSUPPORTED", message, remedy, constraint=constraint, value=value)


def distance(objections: Iterable[routing_pb2.Objection]) -> tuple[int, int]:
    """Measure how big a change the objections ask for: (weight, bytes of memory); smaller is closer."""
    weight = 0
    memory = 0
    for item in objections:
        if item.reason == "DOES_NOT_FIT":
            weight += _MEMORY_DISTANCE
            memory += int(item.metadata["need"]) - int(item.metadata["have"])
        else:
            weight += _DISTANCE.get(item.metadata.get("constraint", ""), 10)
    return weight, memory


def missing_operators(
    target: target_pb2.Target, runtime_name: str, operators: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return operators that the target's runtime lacks, and assumptions. An unstated operator list counts as all."""
    for runtime in target.runtimes:
        if runtime.name == runtime_name:
            if not runtime.operators:
                return [], [f"operators of {clean(runtime_name, 64)} unknown: all are assumed"]
            return sorted(set(operators) - set(runtime.operators)), []
    return [], []


def operator_objections(
    runtime_name: str, missing: Sequence[str], counts: Mapping[str, int] | None = None
) -> list[routing_pb2.Objection]:
    """One OP_UNSUPPORTED for each operator that the firmware's runtime lacks."""
    return [
        objection(
            "OP_UNSUPPORTED",
            f"the firmware's {runtime_name} lacks {name}",
            f"needs the runtime {runtime_name} with operators {', '.join(missing)}",
            constraint="runtime_operator",
            op=name,
            runtime=runtime_name,
            count=(counts or {}).get(name, 0),
        )
        for name in missing[:MAX_OBJECTIONS]
    ]


def model_form(
    have: tensor_pb2.ModelFormat.ValueType,
    accepted: Sequence[tensor_pb2.ModelFormat.ValueType],
    conversions: Iterable[importer_pb2.Conversion],
) -> tensor_pb2.ModelFormat.ValueType | None:
    """Choose the form of the model that a plugin gets: its own when accepted, else one that an Importer can make.

    Returns None when there is no way. ONNX is preferred over other converted forms, as the exchange format.
    """
    if have in accepted:
        return have
    reachable = {conversion.to for conversion in conversions if getattr(conversion, "from") == have}
    return min(
        (form for form in accepted if form in reachable),
        key=lambda form: (form != tensor_pb2.MODEL_FORMAT_ONNX, form),
        default=None,
    )


def judge(
    destination: int,
    target: target_pb2.Target,
    plugin: plugins_pb2.Plugin,
    model: ModelFacts,
    conversions: Sequence[importer_pb2.Conversion] = (),
    peripherals: Sequence[str] = (),
    away: Sequence[importer_pb2.Conversion] = (),
) -> routing_pb2.Verdict:
    """Match one compiler with one target by capabilities alone; no plugin is asked.

    The objections are those of the constraint that comes closest. ``peripherals`` are what the device has, by kind and
    by object id; ``away`` what importers convert that are known but not ready. The model format, limits, peripherals and
    the plugin's own state are judged too.
    """
    verdict = routing_pb2.Verdict(plugin=plugin.name, destination=destination)
    objections = _plugin_objections(plugin, model, conversions, away) + _peripheral_objections(model.needs, peripherals)
    candidates = []
    for constraint in plugin.compiler.targets:
        # A source package is linked into firmware, never installed: to accept it is no change that anybody should make.
        if constraint.payload_kind == target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE not in target.payload_kinds:
            continue
        found, assumptions = match(target, constraint)
        if constraint.runtime and model.format == tensor_pb2.MODEL_FORMAT_TFLITE:
            missing, unknown = missing_operators(target, constraint.runtime, model.operators)
            found += operator_objections(constraint.runtime, missing, model.operators)
            assumptions += unknown
        candidates.append((distance(found), constraint.payload_kind, found, assumptions))
    if candidates:
        _, kind, found, assumptions = min(candidates, key=lambda item: (item[0], item[1]))
        verdict.payload_kind = kind
        verdict.assumptions.extend(assumptions)
        objections += found
    else:
        objections.append(_unsupported("targets", "", "the plugin serves no target", "needs another compiler"))
    verdict.objections.extend(objections[:MAX_OBJECTIONS])
    verdict.admitted = not objections
    return verdict


def _plugin_objections(
    plugin: plugins_pb2.Plugin,
    model: ModelFacts,
    conversions: Sequence[importer_pb2.Conversion],
    away: Sequence[importer_pb2.Conversion],
) -> list[routing_pb2.Objection]:
    found = []
    if plugin.state == plugins_pb2.Plugin.STATE_QUARANTINED:
        found.append(
            objection(
                "PLUGIN_QUARANTINED",
                f"{plugin.name} is in quarantine: {plugin.detail}",
                "needs an administrator to release the plugin, or a new version of it",
                refuted_claims=plugin.refuted_claims,
            )
        )
    elif plugin.state != plugins_pb2.Plugin.STATE_READY:
        state = plugins_pb2.Plugin.State.Name(plugin.state) if plugin.state in range(5) else str(plugin.state)
        found.append(
            objection(
                AWAY_REASON,
                f"{plugin.name} is not ready: {plugin.detail or state}",
                AWAY_REMEDY,
                state=state,
            )
        )
    limit = plugin.limits.max_model_bytes
    if model.size_bytes > limit:
        found.append(
            objection(
                "LIMIT_EXCEEDED",
                f"the model has {bytes_text(model.size_bytes)}, {plugin.name} takes at most {bytes_text(limit)}",
                f"needs a model smaller by {bytes_text(model.size_bytes - limit)}",
                limit="max_model_bytes",
                value=model.size_bytes,
                max=limit,
            )
        )
    if model_form(model.format, plugin.compiler.model_formats, conversions) is None:
        have = format_text(model.format)
        wanted = ", ".join(format_text(form) for form in plugin.compiler.model_formats) or "nothing"
        comes_back = model_form(model.format, plugin.compiler.model_formats, away) is not None
        found.append(
            objection(
                AWAY_REASON,
                f"the model is {have}, {plugin.name} takes {wanted}, and the importer is not ready",
                AWAY_REMEDY,
                format=have,
                accepted=wanted,
            )
            if comes_back
            else objection(
                "FORMAT_UNSUPPORTED",
                f"the model is {have}, {plugin.name} takes {wanted}",
                f"needs an importer from {have} to {wanted}, or the model as {wanted}",
                format=have,
                accepted=wanted,
            )
        )
    return found


def only_away(verdict: routing_pb2.Verdict) -> bool:
    """Tell whether nothing speaks against a pair but that a plugin is away: once it is back it may be admitted."""
    return not verdict.admitted and all(item.reason == AWAY_REASON for item in verdict.objections)


def format_text(form: tensor_pb2.ModelFormat.ValueType) -> str:
    """Name a model format for people."""
    names = {
        tensor_pb2.MODEL_FORMAT_ONNX: "ONNX",
        tensor_pb2.MODEL_FORMAT_TFLITE: "TFLite",
        tensor_pb2.MODEL_FORMAT_KERAS: "Keras",
        tensor_pb2.MODEL_FORMAT_SAVED_MODEL: "SavedModel",
    }
    return names.get(form, f"format {int(form)}")


def _peripheral_objections(needs: Sequence[str], peripherals: Sequence[str]) -> list[routing_pb2.Objection]:
    return [
        objection(
            "PERIPHERAL_MISSING",
            f"the model's input needs a {need}, which the device does not show",
            f"needs a {need}",
            constraint="peripheral",
            peripheral=need,
        )
        for need in needs
        if need not in peripherals
    ]


def with_check(
    verdict: routing_pb2.Verdict, target: target_pb2.Target, check: compiler_pb2.CheckModelResult
) -> routing_pb2.Verdict:
    """Combine a verdict with CheckModel's answer: operators not supported, and estimates against free memory.

    The answer is untrusted: at most 32 objections are kept, figures that are no sizes are dropped, and a refusal
    without a reason is CHECK_FAILED.
    """
    result = routing_pb2.Verdict()
    result.CopyFrom(verdict)
    objections = list(result.objections)
    for operator in check.operators:
        if operator.supported or len(objections) >= MAX_OBJECTIONS:
            continue
        name = clean(operator.operator, 64)
        nodes = f" ({operator.count} nodes)" if operator.count > 1 else ""
        objections.append(
            objection(
                "OP_UNSUPPORTED",
                f"operator {name} is not supported{': ' + operator.detail if operator.detail else ''}",
                f"needs the model without operator {name}{nodes}, or another compiler",
                op=name,
                node=operator.nodes[0] if operator.nodes else "",
                dtype=operator.dtype,
                count=operator.count,
            )
        )
    if not check.supported and len(objections) == len(result.objections):
        objections.append(_check_failed(check))
    estimates = [item for item in check.estimates[:32] if is_size(item.value) and item.method]
    sizes: dict[int, int] = {}
    for item in estimates:
        sizes[item.metric] = max(sizes.get(item.metric, 0), math.ceil(item.value))
    ram = sizes.get(measurement_pb2.METRIC_ARENA_BYTES, 0) + sizes.get(measurement_pb2.METRIC_STACK_BYTES, 0)
    memory, assumptions = fit_objections(
        target, ram_bytes=ram, flash_bytes=sizes.get(measurement_pb2.METRIC_FLASH_BYTES, 0), basis="estimate"
    )
    objections += memory
    del result.objections[:]
    result.objections.extend(objections)
    result.estimates.extend(estimates)
    result.assumptions.extend(text for text in assumptions if text not in result.assumptions)
    result.admitted = not objections
    return result


def _check_failed(check: compiler_pb2.CheckModelResult) -> routing_pb2.Objection:
    info = error_info(check.error)
    reason = info.reason if info is not None and info.reason else "CHECK_FAILED"
    metadata = dict(info.metadata) if info is not None else {}
    return objection_from(reason, check.error.message or "the plugin refused without a reason", metadata)


def objection_from(reason: str, message: str, metadata: Mapping[str, str]) -> routing_pb2.Objection:
    """Build an objection from a plugin's error; the remedy follows from the reason where it is a known one."""
    remedies = {
        "MODEL_INVALID": "needs a valid model",
        "OP_UNSUPPORTED": f"needs the model without operator {metadata.get('op', '(unnamed)')}, or another compiler",
        "TARGET_UNSUPPORTED": "needs another target or another compiler",
        "LIMIT_EXCEEDED": "needs a smaller model",
        AWAY_REASON: AWAY_REMEDY,
    }
    remedy = remedies.get(reason, "needs another compiler")
    need, have = metadata.get("need", ""), metadata.get("have", "")
    if reason == "DOES_NOT_FIT" and need.isascii() and need.isdigit() and have.isascii() and have.isdigit():
        remedy = f"needs {bytes_text(max(int(need[:18]) - int(have[:18]), 1))} more {metadata.get('region', 'memory')}"
    result = objection(reason, message, remedy)
    for key, value in list(metadata.items())[:16]:
        result.metadata[clean(key, 64)] = clean(value, 128)
    return result


def is_size(value: float) -> bool:
    """Tell whether a figure can be a size or count: finite, not negative, below 2**53."""
    return math.isfinite(value) and 0 <= value < 2**53


def is_compiler(plugin: plugins_pb2.Plugin) -> bool:
    """Tell whether a plugin advertises the compiler role."""
    return COMPILER_ROLE in plugin.capabilities
