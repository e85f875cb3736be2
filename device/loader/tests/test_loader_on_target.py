"""The loader compiled for microcontrollers: size, imports, and its verdicts on simulated CPUs."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType

import pytest

from tinymlaas_module import Reason
from tinymlaas_module import corpus as im_corpus
from tinymlaas_simulator import Machine, Region

HERE = Path(__file__).resolve().parent
ENTRIES = ("judge_structure", "judge_trust", "judge_head")
MEMORY = {"memcpy", "memset", "memcmp"}
FLASH, IMAGE, RAM, STACK_TOP = 0x0800_0000, 0x0810_0000, 0x2000_0000, 0x2001_0000
PLATFORM, KEY, MODULE = RAM, RAM + 64, RAM + 256


class Target:
    """A simulated CPU with the loader in flash and an image slot."""

    def __init__(self, tools: ModuleType, cpu: str, folder: Path) -> None:
        self.measures_stack = cpu in ("cortex-m0plus", "rv32imc")
        code, self.addresses = tools.build_on_target(cpu, HERE / "on_target.c", ENTRIES, folder)
        self.machine = Machine(
            cpu,
            [
                Region("code", FLASH, 0x1_0000, "rx"),
                Region("image", IMAGE, 0x4000, "r"),
                Region("ram", RAM, 0x1_0000, "rw"),
            ],
            # The emulator's memory hooks skip instructions behind conditional stores of Thumb-2 code (IT; STR).
            check_accesses=self.measures_stack,
        )
        self.machine.load(FLASH, code)
        (identity, public_key) = next(iter(im_corpus.TRUSTED.keys.items()))
        self.machine.load(PLATFORM, struct.pack("<6I", KEY, 1, 0x7E, 0x3FF, 63, 0))
        self.machine.load(KEY, identity + public_key)
        self.instructions = 0
        self.stack = 0

    def call(self, name: str, *arguments: int) -> str:
        result = self.machine.call(self.addresses[name], arguments, stack_top=STACK_TOP, stack_bytes=0x2000)
        self.instructions, self.stack = result.instructions, result.stack_peak_bytes
        return Reason(result.return_value).name

    def judge(self, image: bytes) -> tuple[str, str]:
        self.machine.load(IMAGE, image + bytes(0x4000 - len(image)))
        structure = self.call("judge_structure", IMAGE, len(image), MODULE)
        if structure != "OK":
            return structure, structure
        return structure, self.call("judge_trust", MODULE, PLATFORM, im_corpus.MINIMUM_COUNTER)


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m33", "rv32imc"])
def test_the_loader_judges_alike_on_every_simulated_cpu(loader_tools: ModuleType, tmp_path: Path, cpu: str) -> None:
    """IM-PARS-001 on the instruction sets that run it; the stack stays within what the guide says."""
    target = Target(loader_tools, cpu, tmp_path)
    cases = list(im_corpus.samples())
    cases += [case for number, case in enumerate(im_corpus.cases()) if number % 1999 == 0]
    if target.measures_stack:
        cases = cases[::3]  # a signature check takes these CPUs, with every access watched, about a second
    different = []
    deepest = 0
    for label, image in cases:
        verdicts = target.judge(image)
        deepest = max(deepest, target.stack)
        if verdicts != im_corpus.verdicts(image):
            different.append((label, verdicts))
    assert different == []
    if target.measures_stack:
        assert 1000 < deepest <= 3072


def test_the_loader_is_small_and_imports_only_memory_functions(loader_tools: ModuleType) -> None:
    """IM-LOAD-004; sizes are stated in device/loader/README.md."""
    roots = (*loader_tools.LOADER_ROOTS, *loader_tools.UPDATE_ROOTS)
    without_crypto = loader_tools.linked_size("cortex-m0plus", roots[:6], crypto=False, update=False)
    whole = loader_tools.linked_size("cortex-m0plus", roots, crypto=True, update=True)
    assert without_crypto.code <= 7 * 1024
    assert whole.code <= 21 * 1024
    helpers = {name for name in whole.imports if name.startswith("__")}
    assert set(whole.imports) - helpers == MEMORY
    integers_only = loader_tools.linked_size("cortex-m0plus", roots, True, True, ["-DTIM_NO_FLOAT"])
    assert not [name for name in integers_only.imports if name.startswith("__aeabi_f")]
