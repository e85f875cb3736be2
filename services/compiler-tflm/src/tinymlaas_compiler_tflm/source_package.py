"""A source package for static firmware: the model as a C array, the operator resolver, arena size, and how to use them.

A tar archive (POSIX ustar) with fixed order, times and owners, so equal models give equal bytes. Names in the model
reach no
file: every identifier comes from the `symbol` option, every operator from a table.
"""

from __future__ import annotations

import hashlib
import io
import tarfile

from tinymlaas_compiler_tflm.arena import ALIGNMENT, estimate_32_bit
from tinymlaas_compiler_tflm.interpreter import TOOL, ArenaReport, tool_version
from tinymlaas_compiler_tflm.operators import REGISTERED
from tinymlaas_modelkit.summary import ModelSummary, TensorSpec

BYTES_PER_LINE = 16


def source_package(tflite: bytes, summary: ModelSummary, report: ArenaReport, symbol: str) -> bytes:
    """The archive; `symbol` is the prefix of files and identifiers, lower case C (checked by the options)."""
    files = {
        f"{symbol}/README.md": _readme(tflite, summary, report, symbol),
        f"{symbol}/{symbol}_config.h": _config(summary, report, symbol),
        f"{symbol}/{symbol}_data.c": _data(tflite, symbol),
        f"{symbol}/{symbol}_data.h": _data_header(tflite, symbol),
        f"{symbol}/{symbol}_operators.cc": _operators(summary, symbol),
        f"{symbol}/{symbol}_operators.h": _operators_header(summary, symbol),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            content = files[name].encode("ascii")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _guard(symbol: str, part: str) -> str:
    return f"{symbol}_{part}_H".upper()


def _header(symbol: str, part: str, body: str) -> str:
    guard = _guard(symbol, part)
    return f"#ifndef {guard}\n#define {guard}\n\n{body}\n#endif  // {guard}\n"


def _data(tflite: bytes, symbol: str) -> str:
    lines = []
    for start in range(0, len(tflite), BYTES_PER_LINE):
        lines.append("  " + ", ".join(f"0x{b:02x}" for b in tflite[start : start + BYTES_PER_LINE]) + ",")
    body = "\n".join(lines)
    return (
        f'#include "{symbol}_data.h"\n\n'
        f"// TFLite files must start at a multiple of {ALIGNMENT} bytes.\n"
        f"_Alignas({ALIGNMENT}) const unsigned char {symbol}_data[{len(tflite)}] = {{\n{body}\n}};\n"
    )


def _data_header(tflite: bytes, symbol: str) -> str:
    body = (
        '#ifdef __cplusplus\nextern "C" {\n#endif\n\n'
        f"// The model, a TFLite file. sha256 {hashlib.sha256(tflite).hexdigest()}\n"
        f"extern const unsigned char {symbol}_data[{len(tflite)}];\n\n"
        "#ifdef __cplusplus\n}\n#endif\n"
    )
    return _header(symbol, "data", body)


def _config(summary: ModelSummary, report: ArenaReport, symbol: str) -> str:
    narrow, upper = estimate_32_bit(report), symbol.upper()
    lines = [
        "// Arena in bytes for a target with 32-bit pointers and TFLite Micro's reference kernels. ESTIMATED: an upper",
        f"// bound; at least {narrow.lower} are needed. Optimized kernels (CMSIS-NN) may ask for scratch memory on top:",
        "// when AllocateTensors() fails, make it larger; arena_used_bytes() tells what was used.",
        f"#define {upper}_ARENA_BYTES {narrow.upper}",
        "",
        f"// Measured on a 64-bit host with {TOOL} {tool_version()}.",
        f"#define {upper}_ARENA_BYTES_64_BIT {report.smallest}",
        "",
        "// Alignment of the arena and of the model.",
        f"#define {upper}_ALIGNMENT {ALIGNMENT}",
        "",
    ]
    for direction, specs in (("INPUT", summary.inputs), ("OUTPUT", summary.outputs)):
        for index, spec in enumerate(specs):
            lines += _tensor_lines(f"{upper}_{direction}_{index}", spec)
    return _header(symbol, "config", "\n".join(lines))


def _tensor_lines(prefix: str, spec: TensorSpec) -> list[str]:
    shape = " x ".join(str(d) for d in spec.shape) or "scalar"
    lines = [f"// {prefix.rsplit('_', 2)[1].lower()} {prefix.rsplit('_', 1)[1]}: {spec.dtype}, {shape}"]
    elements = 1
    for dimension in spec.shape:
        elements *= dimension
    lines.append(f"#define {prefix}_ELEMENTS {elements}")
    if spec.scale is not None:
        lines.append(f"#define {prefix}_SCALE {spec.scale!r}f")
        lines.append(f"#define {prefix}_ZERO_POINT ({spec.zero_point})")
    return [*lines, ""]


def _operators_header(summary: ModelSummary, symbol: str) -> str:
    names = {o.name for o in summary.operators}
    body = (
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n\n'
        f"// The {len(names)} operators of the model and no other, so that the linker drops the rest.\n"
        f"using {symbol}_resolver_t = tflite::MicroMutableOpResolver<{len(names)}>;\n\n"
        f"// Registers the operators in `resolver`, which must be empty; kTfLiteOk when all are there.\n"
        f"TfLiteStatus {symbol}_register_operators({symbol}_resolver_t& resolver);\n"
    )
    return _header(symbol, "operators", body)


def _operators(summary: ModelSummary, symbol: str) -> str:
    names = sorted({o.name for o in summary.operators})
    calls = "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{REGISTERED[name]}());" for name in names)
    return (
        f'#include "{symbol}_operators.h"\n\n'
        f"TfLiteStatus {symbol}_register_operators({symbol}_resolver_t& resolver) {{\n{calls}\n  return kTfLiteOk;\n}}\n"
    )


def _readme(tflite: bytes, summary: ModelSummary, report: ArenaReport, symbol: str) -> str:
    narrow, upper = estimate_32_bit(report), symbol.upper()
    operators = "\n".join(f"| {o.name} | {o.version} | {o.count} |" for o in summary.operators)
    return f"""# {symbol}: a model for TensorFlow Lite Micro

| | |
|---|---|
| model in flash | {len(tflite)} bytes |
| arena, 32-bit target, reference kernels | {narrow.lower} to {narrow.upper} bytes (ESTIMATED; `{upper}_ARENA_BYTES`
is the upper bound) |
| arena, 64-bit host | {report.smallest} bytes (measured with {TOOL} {tool_version()}) |
| multiply-accumulates | {summary.macs} per inference |

| operator | version | count |
|---|---|---|
{operators}

Add the `.c` and `.cc` files to the firmware beside TensorFlow Lite Micro:

```cpp
#include "{symbol}_config.h"
#include "{symbol}_data.h"
#include "{symbol}_operators.h"
#include "tensorflow/lite/micro/micro_interpreter.h"

alignas({upper}_ALIGNMENT) static uint8_t arena[{upper}_ARENA_BYTES];
static {symbol}_resolver_t resolver;

{symbol}_register_operators(resolver);
static tflite::MicroInterpreter interpreter(tflite::GetModel({symbol}_data), resolver, arena, sizeof(arena));
interpreter.AllocateTensors();
// fill interpreter.input(0), then
interpreter.Invoke();
// and read interpreter.output(0)
```
"""
