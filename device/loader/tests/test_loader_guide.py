"""The code in docs/guide-loader.md compiles against the headers as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guide-loader.md"
BEFORE = """
#include "tim_update.h"
void *memcpy(void *restrict to, const void *restrict from, size_t size);
extern const uint8_t *samples, *block, *first_16_bytes_of_the_content_digest;
extern uint32_t slot, size, offset, block_size;
void use(const uint8_t *output);
"""


def test_the_guides_code_compiles(loader_tools: ModuleType, tmp_path: Path) -> None:
    blocks = re.findall(r"```c\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 5
    declarations, statements = blocks[:3], blocks[3:]
    text = BEFORE + "\n".join(declarations).replace("...}", "0}")
    for number, statement in enumerate(statements):
        text += f"\nvoid step_{number}(void) {{\n{statement}\n}}\n"
    source = tmp_path / "guide.c"
    source.write_text(text, encoding="utf-8")
    command = [*loader_tools.zig_cc(), "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4", "-std=c99", "-Wall"]
    warnings = ["-Werror", "-Wno-undefined-internal", "-Wno-unused-function"]
    include = f"-I{loader_tools.ROOT / 'include'}"
    loader_tools.run([*command, *warnings, include, "-c", str(source), "-o", str(tmp_path / "guide.o")])


def test_a_call_that_does_not_exist_would_be_noticed(loader_tools: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text(BEFORE + "void f(void) { tim_update_install(0); }\n", encoding="utf-8")
    include = f"-I{loader_tools.ROOT / 'include'}"
    command = [*loader_tools.zig_cc(), "-target", "thumb-freestanding-eabihf", "-std=c99", "-Werror", include]
    with pytest.raises(RuntimeError, match="tim_update_install"):
        loader_tools.run([*command, "-c", str(source), "-o", str(tmp_path / "wrong.o")])
