"""A way to make a module of a graph: all that its candidates differ in, and what that means for lowering."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tinymlaas_compiler_tvm.int8 import dead_channels
from tinymlaas_compiler_tvm.int8.lowering import Settings
from tinymlaas_compiler_tvm.int8.variants import shipped
from tinymlaas_compiler_tvm.options import Options
from tinymlaas_compiler_tvm.prepare import prepare
from tinymlaas_compiler_tvm.target import Machine, TargetSpec, machine_for
from tinymlaas_modelkit.graph import Graph

_UNROLL = {"balanced": 8, "latency": 16, "flash": 2, "ram": 8}


def settings_for(options: Options, machine: Machine) -> Settings:
    """What checked options mean for lowering."""
    return Settings(
        unroll=_UNROLL[options.objective],
        scratch_free_dense=options.objective == "ram",
        compact=options.objective == "flash",
        rounding=options.rounding,
        variants=shipped(machine, options.objective),
        zeros=options.objective,
    )


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to make a module of a graph for a target under checked options.

    `variants`: how far loops unroll by layer signature, instead of what the shipped database says. `faster`: outputs of the
    operators that do not mind the objective `flash`. `winograd`: outputs of the convolutions that go by Winograd. `zeros`:
    whether layers may leave out their single zeros. `aim`: clang's, for speed (`-O2`) or size (`-Os`).
    """

    graph: Graph
    target: TargetSpec
    options: Options
    variants: Mapping[str, int] | None = None
    faster: frozenset[str] = frozenset()
    winograd: frozenset[str] = frozenset()
    zeros: bool = True
    aim: str = "-Os"

    @property
    def machine(self) -> Machine:
        """The machine of the target; TargetUnsupported."""
        return machine_for(self.target)

    def settings(self, rounding: str) -> Settings:
        """What this way means for lowering with a rounding that may not be that of the options."""
        plain = settings_for(dataclasses.replace(self.options, rounding=rounding), self.machine)
        return dataclasses.replace(
            plain,
            variants=plain.variants if self.variants is None else self.variants,
            faster=self.faster,
            winograd=self.winograd,
            zeros=plain.zeros if self.zeros else "",
        )

    def thinned(self) -> Graph:
        """The graph as its kernels see it: prepared, and without dead channels."""
        prepared, rounding = prepare(self.graph, self.options.rounding)
        return dead_channels.thinned(prepared, self.machine, self.settings(rounding))
