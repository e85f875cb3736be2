"""What the linked image says: payload bytes, symbols, section sizes, and the call graph with its stack bound."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from tinymlaas_compiler_tvm.errors import CompilerFault


@dataclass(frozen=True)
class Symbol:
    """A function or object: bytes [offset, offset + size) of the payload."""

    name: str
    offset: int
    size: int
    is_function: bool


@dataclass(frozen=True)
class Image:
    """A flat payload and its symbols, by offset."""

    payload: bytes
    symbols: tuple[Symbol, ...]
    code_bytes: int
    constant_bytes: int

    def symbol(self, name: str) -> Symbol:
        """The symbol of that name."""
        for symbol in self.symbols:
            if symbol.name == name:
                return symbol
        raise CompilerFault("symbol is missing from the image", detail=name)


def read_image(elf: bytes) -> Image:
    """The payload section of a linked image and its symbols (Thumb bit removed)."""
    file = ELFFile(io.BytesIO(elf))
    section = file.get_section_by_name(".payload")
    table = file.get_section_by_name(".symtab")
    if section is None or not isinstance(table, SymbolTableSection):
        raise CompilerFault("image has no payload", detail=".payload")
    if section["sh_addr"] != 0:
        raise CompilerFault("payload is not linked at 0", detail=section["sh_addr"])
    for relocations in file.iter_sections():
        if isinstance(relocations, RelocationSection) and relocations.num_relocations():
            raise CompilerFault("payload needs relocation", detail=relocations.name)
    marks: dict[str, int] = {}
    symbols = []
    arm = file["e_machine"] == "EM_ARM"
    for entry in table.iter_symbols():
        kind, value = entry["st_info"]["type"], int(entry["st_value"])
        if entry.name in ("tim_code_start", "tim_constants_start", "tim_payload_end"):
            marks[entry.name] = value
        elif kind in ("STT_FUNC", "STT_OBJECT") and entry["st_shndx"] != "SHN_UNDEF":
            is_function = kind == "STT_FUNC"
            offset = value & ~1 if is_function and arm else value
            symbols.append(Symbol(entry.name, offset, int(entry["st_size"]), is_function))
    symbols.sort(key=lambda symbol: (symbol.offset, symbol.name))
    payload = section.data()[: marks["tim_payload_end"]]
    code = marks["tim_constants_start"]
    return Image(payload, tuple(symbols), code, len(payload) - code)


@dataclass(frozen=True)
class StackBound:
    """The deepest chain of calls from the entry: bytes, the chain, and each function's own frame."""

    bytes: int
    chain: tuple[str, ...]
    frames: Mapping[str, int]
    calls: Mapping[str, tuple[str, ...]]


def call_graph(objects: Sequence[bytes]) -> dict[str, set[str]]:
    """Who refers to whom, read from relocations: every function has a section of its own."""
    graph: dict[str, set[str]] = {}
    for data in objects:
        file = ELFFile(io.BytesIO(data))
        table = file.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            continue
        owners: dict[int, list[str]] = {}
        for entry in table.iter_symbols():
            if entry["st_info"]["type"] == "STT_FUNC" and entry["st_shndx"] != "SHN_UNDEF":
                owners.setdefault(int(entry["st_shndx"]), []).append(entry.name)
                graph.setdefault(entry.name, set())
        for section in file.iter_sections():
            if not isinstance(section, RelocationSection):
                continue
            callers = owners.get(int(section["sh_info"]), [])
            for relocation in section.iter_relocations():
                symbol = table.get_symbol(relocation["r_info_sym"])
                index = symbol["st_shndx"]
                names = [symbol.name] if symbol.name else owners.get(index, []) if isinstance(index, int) else []
                if symbol["st_info"]["type"] == "STT_SECTION" and isinstance(index, int):
                    names = owners.get(index, [])
                for caller in callers:
                    graph[caller].update(name for name in names if name and name != caller)
    functions = set(graph)
    return {caller: {callee for callee in callees if callee in functions} for caller, callees in graph.items()}


def stack_bound(objects: Sequence[bytes], frames: Mapping[str, int], entry: str) -> StackBound:
    """The bound on stack from the entry on; CompilerFault on recursion or on a function without a known frame."""
    graph = call_graph(objects)
    best: dict[str, tuple[int, tuple[str, ...]]] = {}
    active: set[str] = set()

    def depth(name: str) -> tuple[int, tuple[str, ...]]:
        if name in best:
            return best[name]
        if name in active:
            raise CompilerFault("recursion: the stack has no bound", detail=name)
        if name not in frames:
            raise CompilerFault("a function's stack use is unknown", detail=name)
        active.add(name)
        below, chain = max((depth(callee) for callee in sorted(graph.get(name, ()))), default=(0, ()))
        active.discard(name)
        best[name] = (frames[name] + below, (name, *chain))
        return best[name]

    total, chain = depth(entry)
    reached = sorted(best)
    # AAPCS and the RISC-V convention keep the stack aligned to 8 and 16 bytes; a module without steps claims the least.
    return StackBound(
        max(-(-total // 16), 1) * 16,
        chain,
        {name: frames[name] for name in reached},
        {name: tuple(sorted(graph.get(name, ()))) for name in reached},
    )
