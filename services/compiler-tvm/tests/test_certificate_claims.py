"""What the certificate claims holds together: each step reads only what the model's inputs or earlier steps have put there."""

from __future__ import annotations

import dataclasses

import pytest
from compiler_tvm_bench import TARGETS, zoo_model

from tinymlaas_compiler_tvm import CompiledParts, compile_model
from tinymlaas_compiler_tvm.certificates import certificate_message


def unwritten_reads(parts: CompiledParts) -> list[str]:
    """Reads of tensors (workspaces apart) of bytes that nothing has written before, in words."""
    evidence = parts.certificate
    workspaces = [buffer for buffer in evidence.buffers if buffer.kind == "workspace"]
    written = bytearray(evidence.arena_bytes)
    for tensor in parts.inputs:
        whole = next(b for b in evidence.buffers if b.offset == tensor.offset and b.first == 0)
        written[whole.offset : whole.offset + whole.bytes] = b"\1" * whole.bytes
    found = []
    for step in evidence.steps:
        for buffer in evidence.buffers:
            if buffer.first == step.index > 0:  # what an earlier buffer left there is not this one's
                written[buffer.offset : buffer.offset + buffer.bytes] = bytes(buffer.bytes)
        for read in step.reads:
            scratch = any(
                w.first <= step.index <= w.last and w.offset <= read.offset < w.offset + w.bytes for w in workspaces
            )
            if not scratch and not all(written[read.offset : read.offset + read.bytes]):
                found.append(f"step {step.index} ({step.symbol}) reads {read}")
        for write in step.writes:
            written[write.offset : write.offset + write.bytes] = b"\1" * write.bytes
    return found


@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m3", "cortex-m0plus"])
@pytest.mark.parametrize("name", ["kws", "ic", "vww", "ad", "sww"])
def test_a_step_reads_only_what_was_written_before(name: str, cpu: str) -> None:
    assert unwritten_reads(compile_model(zoo_model(name, "int8_qdq"), TARGETS[cpu])) == []


def test_functions_have_short_names_in_the_certificate_that_no_two_share() -> None:
    parts = compile_model(zoo_model("ad", "int8_qdq"), TARGETS["cortex-m4"])
    evidence = parts.certificate
    frames = {**evidence.stack_frames, "memcpy": 0, "tim_memcpy": 0, "s1": 0}
    message = certificate_message(
        dataclasses.replace(parts, certificate=dataclasses.replace(evidence, stack_frames=frames))
    )
    names = [frame.function for frame in message.frames]
    assert len(set(names)) == len(names) == len(frames)
    assert {step.name for step in message.steps} <= set(names)
    assert {callee for frame in message.frames for callee in frame.calls} <= set(names)
