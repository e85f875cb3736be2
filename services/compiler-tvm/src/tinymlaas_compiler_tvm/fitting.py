"""A module that fits its device: kernels give way to smaller ones layer by layer where flash is short."""

from __future__ import annotations

import dataclasses

from tinymlaas.module.v1 import certificate_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_compiler_tvm import DoesNotFit, TargetSpec, compile_model
from tinymlaas_compiler_tvm.certificates import certificate_message, image_bytes
from tinymlaas_compiler_tvm.compile import compile_graph, graph_for, has_integer_kernels, rankings
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.parts import CompiledParts, Numerics
from tinymlaas_compiler_tvm.target import machine_for
from tinymlaas_compiler_tvm.tune import Progress
from tinymlaas_compiler_tvm.way import Way
from tinymlaas_pluginkit import CompileJob


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A module's parts and its certificate."""

    parts: CompiledParts
    certificate: certificate_pb2.MemoryCertificate

    @property
    def image_bytes(self) -> int:
        """About what it takes on a device: payload, certificate, a golden vector, and the format's tables."""
        return image_bytes(self.parts, self.certificate)

    def with_line(self, line: str) -> Fitted:
        """The same with a line before its log."""
        return dataclasses.replace(self, parts=dataclasses.replace(self.parts, log=(line, *self.parts.log)))


def fitted(parts: CompiledParts) -> Fitted:
    """Parts with their certificate."""
    return Fitted(parts, certificate_message(parts))


def compile_to_fit(job: CompileJob, progress: Progress | None = None) -> Fitted:
    """The module by the objective of the options; where that is `balanced` and flash is short, with smaller kernels.

    As many layers as the flash holds keep the faster ones, those first that save most instructions a byte.
    """
    target = target_spec(job.target)
    balanced = job.options.get("objective", "balanced") == "balanced"
    try:
        made = fitted(compile_model(job.model, target, job.options, progress=progress))
    except DoesNotFit as error:
        if not balanced or error.metadata.get("region") != "flash":
            raise
        need = int(error.metadata["need"])
    else:
        need = made.image_bytes
        # For a float model the objective changes nothing.
        fits = not target.flash_bytes or need <= target.flash_bytes
        if fits or not balanced or made.parts.numerics.kind is Numerics.WITHIN_TOLERANCE:
            return made
    smallest = fitted(compile_model(job.model, target, {**job.options, "objective": "flash"}, progress=progress))
    kept, among, best = _with_faster_layers(job, target, smallest)
    return best.with_line(
        f"objective flash but for {kept} of {among} layers, since {need} B by objective balanced are too many for "
        f"{target.flash_bytes} B of flash"
    )


def _with_faster_layers(job: CompileJob, target: TargetSpec, smallest: Fitted) -> tuple[int, int, Fitted]:
    """(layers with faster kernels, of how many, the module): the longest start of the ranking that fits, by bisection."""
    options = dataclasses.replace(Options.of(job.options), objective="flash", tune=0)
    graph, _ = graph_for(job.model, machine_for(target), options)
    if graph is None or not has_integer_kernels(graph) or smallest.image_bytes > target.flash_bytes:
        return 0, 0, smallest
    way = Way(graph, target, options)
    ranking = rankings(way)
    low, high, best = 0, len(ranking), smallest
    while low < high:
        middle = (low + high + 1) // 2
        try:
            made = fitted(compile_graph(dataclasses.replace(way, faster=frozenset(ranking[:middle]))))
        except DoesNotFit:
            high = middle - 1
            continue
        if made.image_bytes <= target.flash_bytes:
            low, best = middle, made
        else:
            high = middle - 1
    return low, len(ranking), best


def target_spec(target: target_pb2.Target) -> TargetSpec:
    """The contract's target as this compiler sees it: the largest RAM and flash region, free where that is known."""

    def largest(kind: target_pb2.MemoryRegion.Kind.ValueType) -> int:
        regions = [region for region in target.memory_regions if region.kind == kind]
        sizes = [region.free_bytes if region.HasField("free_bytes") else region.total_bytes for region in regions]
        return max(sizes, default=0)

    return TargetSpec(
        cpu=target.cpu,
        isa=target.isa,
        features=tuple(target.features),
        ram_bytes=largest(target_pb2.MemoryRegion.KIND_RAM),
        flash_bytes=largest(target_pb2.MemoryRegion.KIND_FLASH),
    )
