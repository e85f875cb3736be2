"""The boards there are: data files turned into specifications, layouts and running boards."""

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tinymlaas_module import key_id
from tinymlaas_simulator import cpu_named

from .board import Board, BoardSpec, PeripheralSpec

FIRMWARE_VERSION = "1.0.0"
LOADER_ABI = 1


@dataclass(frozen=True)
class Layout:
    """Where things lie in a board's flash: offsets and sizes in bytes from its start."""

    firmware_bytes: int
    keys: int
    labels: int
    journal: int
    journal_bytes: int
    slots: tuple[tuple[int, int], ...]
    page_bytes: int
    program_bytes: int


@dataclass(frozen=True)
class BoardModel:
    """A virtual board's specification (no serial, no keys yet) and flash layout."""

    summary: str
    spec: BoardSpec
    layout: Layout


@cache
def board_models() -> dict[str, BoardModel]:
    """Give every virtual board by name."""
    text = resources.files("tinymlaas_device").joinpath("boards.toml").read_text(encoding="utf-8")
    return {name: board_model(name, row) for name, row in tomllib.loads(text).items()}


def board_model(name: str, row: dict[str, object]) -> BoardModel:
    """Make a board from one table of the data file; raises ValueError where the table contradicts itself."""
    number = {key: value for key, value in row.items() if isinstance(value, int)}
    cpu = cpu_named(str(row["cpu"]))
    layout = _layout(name, number)
    static = row.get("static_firmware", False) is True
    peripherals = row["peripherals"]
    if not isinstance(peripherals, list):
        raise ValueError(f"{name}: peripherals is a list of [object id, kind]")
    spec = BoardSpec(
        name=name,
        manufacturer="TinyMLaaS",
        model=name,
        serial="",
        hardware_version="1",
        cpu=cpu.name,
        isa=cpu.isa,
        features=tuple(sorted(cpu.features)),
        clock_hz=number["clock_hz"],
        ram_total=number["ram_total"],
        flash_total=number["flash_total"],
        flash_page=layout.page_bytes,
        slot_sizes=tuple(size for _, size in layout.slots),
        payload_kinds=("FIRMWARE",) if static else ("NATIVE",),
        loader_abi=LOADER_ABI,
        firmware_version=FIRMWARE_VERSION,
        peripherals=tuple(PeripheralSpec(int(number), str(kind)) for number, kind in peripherals),
        static_firmware=static,
    )
    return BoardModel(str(row["summary"]), spec, layout)


def _layout(name: str, number: dict[str, int]) -> Layout:
    page, slots = number["flash_page"], number["slots"]
    keys = -(-number["firmware_flash"] // page) * page
    key_bytes = -(-512 // page) * page
    labels = keys + key_bytes
    journal = labels + slots * page
    journal_bytes = number["journal_pages"] * page
    first = journal + journal_bytes
    each = (number["flash_total"] - first) // slots // page * page
    if each < page or number["journal_pages"] % 2:
        raise ValueError(f"{name}: flash is too small for its slots, or its journal has no two equal halves")
    places = tuple((first + index * each, each) for index in range(slots))
    return Layout(keys, keys, labels, journal, journal_bytes, places, page, number["program_bytes"])


def board_names() -> list[str]:
    """Give the names of all boards, virtual boards first."""
    from .tflm_board import TFLM_BOARDS

    return [*board_models(), *TFLM_BOARDS]


def make_board(name: str, *, serial: str = "0001", keys: Sequence[bytes] = (), state_file: Path | None = None) -> Board:
    """Make the board of that name, which trusts the Ed25519 public `keys` (32 bytes each; at most 4).

    `state_file` holds its flash across restarts. Raises ValueError for an unknown name, which lists the known ones.
    """
    from .tflm_board import TFLM_BOARDS, TflmBoard
    from .virtual_board import VirtualBoard

    identity = {"serial": serial, "key_ids": tuple(key_id(key) for key in keys)}
    if name in TFLM_BOARDS:
        return TflmBoard(dataclasses.replace(TFLM_BOARDS[name], **identity), keys=keys, state_file=state_file)  # type: ignore[arg-type]
    model = board_models().get(name)
    if model is None:
        raise ValueError(f"no board is called {name!r}; there are {', '.join(board_names())}")
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, **identity))  # type: ignore[arg-type]
    return VirtualBoard(model, keys=keys, state_file=state_file)
