"""A board with the real TFLite Micro interpreter takes TFLITE modules and nothing else."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinymlaas_device.board import Board, BoardError, BoardReason, SlotState
from tinymlaas_device.boards import make_board
from tinymlaas_device.tflm_board import ARENA_BYTES, TflmBoard
from tinymlaas_module import (
    DType,
    Executor,
    Golden,
    GoldenVector,
    ModuleContents,
    Numerics,
    NumericsClass,
    PayloadKind,
    Tensor,
    TensorKind,
    pack,
    sign,
)

sys.path.insert(0, str(Path(__file__).parent))

from board_modules import KEY, OTHER_KEY, PUBLIC_KEY, module_for

ZOO = Path(__file__).parents[3] / "zoo"


def kws(
    *,
    arena_bytes: int = 20_000,
    golden: bytes | None = None,
    payload: bytes | None = None,
    key: object = KEY,
    version: str = "1",
    counter: int = 1,
) -> tuple[bytes, list[bytes], list[bytes]]:
    """Give a signed keyword-spotting module and the samples' inputs and golden outputs."""
    with np.load(ZOO / "kws/samples.npz") as data:
        inputs = [value.tobytes() for value in data["input_int8"][:4]]
        outputs = [value.tobytes() for value in data["output_int8"][:4]]
    contents = ModuleContents(
        name="kws",
        version=version,
        kind=PayloadKind.TFLITE,
        payload=payload if payload is not None else (ZOO / "kws/kws_int8.tflite").read_bytes(),
        tensors=(
            Tensor(TensorKind.INPUT, DType.INT8, (1, 49, 10, 1), scale=0.5847029, zero_point=83),
            Tensor(TensorKind.OUTPUT, DType.INT8, (1, 12), scale=1 / 256, zero_point=-128),
        ),
        arena_bytes=arena_bytes,
        security_counter=counter,
        golden=Golden(
            Numerics(NumericsClass.BIT_EXACT, Executor.TFLITE),
            (GoldenVector((inputs[0],), (golden or outputs[0],)),),
        ),
    )
    return sign(pack(contents), key), inputs, outputs  # type: ignore[arg-type]


@pytest.fixture
def board() -> Iterator[TflmBoard]:
    made = make_board("tflm-m4f", keys=[PUBLIC_KEY])
    assert isinstance(made, TflmBoard)
    yield made
    made.close()


def receive(board: Board, slot: int, image: bytes) -> None:
    board.begin(slot, len(image), hashlib.sha256(image).digest())
    for start in range(board.bytes_written(slot), len(image), 1024):
        board.write(slot, start, image[start : start + 1024])
    board.verify(slot)


def install(board: Board, slot: int, image: bytes) -> None:
    receive(board, slot, image)
    assert board.self_test(slot).passed
    board.activate(slot)


def test_a_module_classifies_as_the_golden_outputs_say(board: TflmBoard) -> None:
    image, inputs, outputs = kws()
    install(board, 0, image)
    assert [board.invoke(data).output for data in inputs] == outputs
    assert board.counters().invocations == 4
    again = board.invoke(inputs[0])
    assert again.latency_unit == "us"
    assert again.confidence == (max(np.frombuffer(outputs[0], np.int8)) + 128.0) / 256, "the scores of softmax"


def test_refusals_have_their_reasons(board: TflmBoard) -> None:
    def reason(image: bytes) -> BoardReason:
        with pytest.raises(BoardError) as caught:
            receive(board, 0, image)
        assert board.slot(0).state is SlotState.EMPTY
        return caught.value.reason

    assert reason(kws(key=OTHER_KEY)[0]) is BoardReason.UNKNOWN_KEY
    assert reason(kws(arena_bytes=ARENA_BYTES + 1)[0]) is BoardReason.NOT_ENOUGH_RAM
    assert reason(module_for("cortex-m4")) is BoardReason.UNSUPPORTED_KIND
    tampered = bytearray(kws()[0])
    tampered[len(tampered) // 2] ^= 1
    assert reason(bytes(tampered)) is BoardReason.BAD_IMAGE


def test_a_model_that_differs_or_crashes_the_interpreter_fails_its_self_test(board: TflmBoard) -> None:
    receive(board, 0, kws(golden=bytes(12))[0])
    assert board.self_test(0).detail == "golden vector 0 of 1 differs"
    good = (ZOO / "kws/kws_int8.tflite").read_bytes()
    for damaged in (good[:3000], b"no model at all, but long enough", good[:4] + b"TFL3" + bytes(5000)):
        receive(board, 0, kws(payload=damaged)[0])
        verdict = board.self_test(0)
        assert not verdict.passed
        assert verdict.detail.startswith("the interpreter refuses the model")
        assert board.slot(0).state is SlotState.EMPTY


def test_the_active_module_and_a_download_survive_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "tflm.json"
    image, inputs, outputs = kws()
    newer, _, _ = kws(version="2")
    board = make_board("tflm-m4f", keys=[PUBLIC_KEY], state_file=state)
    assert isinstance(board, TflmBoard)
    install(board, 0, image)
    board.begin(1, len(newer), hashlib.sha256(newer).digest())
    board.write(1, 0, newer[:5000])
    board.close()
    again = make_board("tflm-m4f", keys=[PUBLIC_KEY], state_file=state)
    assert isinstance(again, TflmBoard)
    assert again.invoke(inputs[1]).output == outputs[1]
    assert again.bytes_written(1) == 5000
    install(again, 1, newer)
    assert again.active_slot() == 1
    assert again.rollback() == 0
    assert again.invoke(inputs[1]).output == outputs[1]
    again.close()


def test_an_older_module_is_a_downgrade_once_the_newer_one_has_run(board: TflmBoard) -> None:
    image, inputs, _ = kws(counter=3)
    install(board, 0, image)
    board.invoke(inputs[0])
    with pytest.raises(BoardError) as caught:
        receive(board, 1, kws(counter=2, version="0")[0])
    assert caught.value.reason is BoardReason.DOWNGRADE
