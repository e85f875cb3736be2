"""Every single lie in a certificate, made systematically: each is caught here, or listed with who catches it and why.

The mutants change one statement of a true certificate each, in every place where there is one. What survives is compared with
the table below, so a weaker checker fails these tests, and so does a stronger one until the table says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from module_certificate import CERTIFICATE, module

from tinymlaas_module import Access, BufferKind, Frame, MemoryCertificate, Step, check_certificate

# What one certificate cannot contradict by itself. The Profiler runs the payload with exactly the stated arena and stack, every
# access checked: `services/profiler/tests/test_profiler_lies.py` has a payload for each of these.
UNDERSTATED = "an honest run needs more stack than stated: the Profiler sees the overflow"
FEWER_READS = "what is read is less than stated or stated less: no value is lost, bounds are the Profiler's to witness"
ONLY_A_NAME = "a tensor called a workspace has the same place, life and accesses: nothing follows from the name"
SURVIVORS = {
    "another entry": UNDERSTATED,
    "buffer conv kind WORKSPACE": ONLY_A_NAME,
    "buffer relu kind WORKSPACE": ONLY_A_NAME,
    "frame entry smaller": UNDERSTATED,
    "frame conv smaller": UNDERSTATED,
    "frame dense smaller": UNDERSTATED,
    "frame memcpy smaller": UNDERSTATED,
    "call entry>conv left out": UNDERSTATED,
    "call entry>dense left out": UNDERSTATED,
    "call conv>memcpy left out": UNDERSTATED,
    "call dense>memcpy left out": UNDERSTATED,
    "read conv[0] smaller": FEWER_READS,
    "read conv[1] smaller": FEWER_READS,
    "read relu[0] smaller": FEWER_READS,
    "read dense[0] smaller": FEWER_READS,
    "read conv[0] left out": FEWER_READS,
    "read conv[1] left out": FEWER_READS,
    "read dense[0] left out": FEWER_READS,
}


def buffer_mutants() -> Iterator[tuple[str, MemoryCertificate]]:
    """Each buffer elsewhere, larger, smaller, born later, dead earlier, of another kind, gone."""
    buffers = CERTIFICATE.buffers
    for index, one in enumerate(buffers):
        changes = {
            "moved up": {"offset": one.offset + 4},
            "moved down": {"offset": one.offset - 4},
            "misaligned": {"offset": one.offset + 1},
            "beyond the arena": {"offset": CERTIFICATE.arena_bytes},
            "larger": {"size": one.size + 4},
            "smaller": {"size": one.size - 4},
            "born later": {"first_step": one.first_step + 1},
            "dead earlier": {"last_step": one.last_step - 1},
            "renamed": {"name": "another"},
        }
        changes |= {f"kind {kind.name}": {"kind": kind} for kind in BufferKind if kind is not one.kind}
        for what, change in changes.items():
            changed = (*buffers[:index], replace(one, **change), *buffers[index + 1 :])  # type: ignore[arg-type]
            yield f"buffer {one.name} {what}", replace(CERTIFICATE, buffers=changed)
        yield f"buffer {one.name} gone", replace(CERTIFICATE, buffers=(*buffers[:index], *buffers[index + 1 :]))


def access_mutants() -> Iterator[tuple[str, MemoryCertificate]]:
    """Each read and write beyond its buffer, smaller, to another buffer, left out; each step left out or moved."""
    steps = CERTIFICATE.steps

    def with_step(index: int, changed: Step) -> MemoryCertificate:
        return replace(CERTIFICATE, steps=(*steps[:index], changed, *steps[index + 1 :]))

    for index, step in enumerate(steps):
        yield f"step {step.name} left out", replace(CERTIFICATE, steps=(*steps[:index], *steps[index + 1 :]))
        for kind in ("reads", "writes"):
            accesses: tuple[Access, ...] = getattr(step, kind)
            for number, access in enumerate(accesses):
                name = f"{kind[:-1]} {step.name}[{number}]"
                lies = {
                    "beyond the buffer": (replace(access, size=access.size + 1),),
                    "moved up": (replace(access, offset=access.offset + 1),),
                    "smaller": (replace(access, size=access.size - 1),),
                    "of nothing": (replace(access, buffer="nobody"),),
                    "left out": (),
                }
                for what, lie in lies.items():
                    changed = (*accesses[:number], *lie, *accesses[number + 1 :])
                    yield f"{name} {what}", with_step(index, replace(step, **{kind: changed}))
    for index in range(len(steps) - 1):
        swapped = (*steps[:index], steps[index + 1], steps[index], *steps[index + 2 :])
        yield f"steps {index} and {index + 1} swapped", replace(CERTIFICATE, steps=swapped)


def stack_mutants() -> Iterator[tuple[str, MemoryCertificate]]:
    """Each frame larger, smaller, gone; each call left out, into the unknown, back to the entry."""
    frames = CERTIFICATE.frames

    def with_frame(index: int, *changed: Frame) -> MemoryCertificate:
        return replace(CERTIFICATE, frames=(*frames[:index], *changed, *frames[index + 1 :]))

    for index, frame in enumerate(frames):
        yield f"frame {frame.function} larger", with_frame(index, replace(frame, size=frame.size + 64))
        yield f"frame {frame.function} smaller", with_frame(index, replace(frame, size=frame.size - 8))
        yield f"frame {frame.function} gone", with_frame(index)
        yield f"frame {frame.function} twice", with_frame(index, frame, frame)
        yield (
            f"frame {frame.function} calls the entry",
            with_frame(index, replace(frame, calls=(*frame.calls, "entry"))),
        )
        yield f"frame {frame.function} calls nobody", with_frame(index, replace(frame, calls=(*frame.calls, "nobody")))
        for callee in frame.calls:
            kept = tuple(other for other in frame.calls if other != callee)
            yield f"call {frame.function}>{callee} left out", with_frame(index, replace(frame, calls=kept))


def sum_mutants() -> Iterator[tuple[str, MemoryCertificate]]:
    """Each sum and section wrong by a little."""
    for name in ("arena_bytes", "arena_alignment", "stack_bytes"):
        for change in (-16, -1, 1, 16):
            yield f"{name} {change:+}", replace(CERTIFICATE, **{name: getattr(CERTIFICATE, name) + change})
    for index, section in enumerate(CERTIFICATE.sections):
        others = (*CERTIFICATE.sections[:index], *CERTIFICATE.sections[index + 1 :])
        for change in (-1, 1):
            yield (
                f"section {section.name} size {change:+}",
                replace(CERTIFICATE, sections=(*others, replace(section, size=section.size + change))),
            )
        yield (
            f"section {section.name} moved",
            replace(CERTIFICATE, sections=(*others, replace(section, offset=section.offset + 4))),
        )
        yield f"section {section.name} gone", replace(CERTIFICATE, sections=others)
        yield (
            f"section {section.name} writable",
            replace(CERTIFICATE, sections=(*others, replace(section, name=".data"))),
        )
    yield "no method", replace(CERTIFICATE, stack_method="")
    yield "another entry", replace(CERTIFICATE, entry_function="memcpy")


MUTANTS = dict([*buffer_mutants(), *access_mutants(), *stack_mutants(), *sum_mutants()])


@pytest.mark.parametrize("name", sorted(set(MUTANTS) - set(SURVIVORS)))
def test_a_certificate_with_this_lie_is_refused(name: str) -> None:
    assert check_certificate(MUTANTS[name], module()) != []


@pytest.mark.parametrize("name", sorted(SURVIVORS))
def test_this_lie_is_consistent_with_itself_and_left_to_the_profiler(name: str) -> None:
    assert check_certificate(MUTANTS[name], module()) == []


def test_the_mutants_cover_every_statement_of_the_certificate() -> None:
    accesses = sum(len(step.reads) + len(step.writes) for step in CERTIFICATE.steps)
    assert len(MUTANTS) > 13 * len(CERTIFICATE.buffers) + 5 * accesses + 6 * len(CERTIFICATE.frames)
