"""Two emulators that share no code of ours agree on what a module of the zoo executes."""

from __future__ import annotations

import numpy as np
import pytest
from compiler_tvm_bench import TARGETS, Samples, zoo_model

from tinymlaas_compiler_tvm import compile_model
from tinymlaas_simulator import QEMU_PROGRAM, find_qemu, run_native, run_native_in_qemu


@pytest.mark.skipif(find_qemu() is None, reason=f"{QEMU_PROGRAM} is not installed")
@pytest.mark.parametrize("cpu", ["cortex-m3", "cortex-m4", "cortex-m33"])
def test_qemu_counts_what_the_built_in_emulator_counts(cpu: str) -> None:
    parts = compile_model(zoo_model("kws", "int8_qdq"), TARGETS[cpu])
    x, expected = Samples("kws").int8[0]
    ours, theirs = (
        run(
            parts.payload,
            cpu=cpu,
            entry_offset=parts.entry_offset,
            arena_bytes=parts.arena_bytes,
            stack_limit=parts.stack_bytes,
            inputs={parts.inputs[0].offset: x.tobytes()},
            outputs=[(parts.outputs[0].offset, parts.outputs[0].bytes)],
            ram_bytes=parts.arena_bytes + parts.stack_bytes + 64,
            flash_bytes=len(parts.payload),
            check_relocation=False,
        )
        for run in (run_native, run_native_in_qemu)
    )
    assert ours.outputs == theirs.outputs == (expected.tobytes(),)
    assert ours.instructions == theirs.instructions
    np.testing.assert_array_equal(ours.executed, theirs.executed)
    np.testing.assert_array_equal(ours.taken, theirs.taken)
    np.testing.assert_array_equal(ours.moved, theirs.moved)
    assert (ours.stack_peak_bytes, ours.arena_high_water) == (theirs.stack_peak_bytes, theirs.arena_high_water)
