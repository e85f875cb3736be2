"""The C loader and the Python parser say the same about the same bytes (IM-PARS-001, IM-PARS-002, IM-VERS-003)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_module import KeyRing, key_id, parse
from tinymlaas_module import corpus as im_corpus

HERE = Path(__file__).resolve().parent
SAMPLES = dict(im_corpus.samples())


def _judge_all(program: Path, folder: Path, cases: Sequence[tuple[str, bytes]], keys: KeyRing) -> list[tuple[str, str]]:
    """Return (verdict on structure, verdict on trust) of the C loader for each case."""
    (identity, public_key) = next(iter(keys.keys.items()))
    corpus = folder / "corpus.bin"
    with corpus.open("wb") as stream:
        stream.write(identity + public_key)
        for _, image in cases:
            stream.write(struct.pack("<I", len(image)) + image)
    done = subprocess.run(
        [str(program), str(corpus), str(im_corpus.MINIMUM_COUNTER)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [(line.split()[0], line.split()[1]) for line in done.stdout.splitlines()]


Expected = list[tuple[str, bytes, tuple[str, str]]]


@pytest.fixture(scope="module")
def expected() -> Expected:
    """Every case of the corpus with Python's verdicts."""
    return [(label, image, im_corpus.verdicts(image)) for label, image in im_corpus.cases()]


def _compare(program: Path, folder: Path, expected: Expected) -> None:
    cases = [(label, image) for label, image, _ in expected]
    judged = _judge_all(program, folder, cases, im_corpus.TRUSTED)
    assert len(judged) == len(cases)
    different = [
        (label, in_c, in_python)
        for (label, _, in_python), in_c in zip(expected, judged, strict=True)
        if in_c != in_python
    ]
    assert different == []


def test_every_case_of_the_corpus_gets_the_same_verdict_in_c_and_python(
    loader_tools: ModuleType, tmp_path: Path, expected: Expected
) -> None:
    program = loader_tools.build_program(tmp_path / "verdicts", HERE / "verdicts.c")
    _compare(program, tmp_path, expected)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_corpus_runs_clean_under_address_sanitizer(
    loader_tools: ModuleType, tmp_path: Path, expected: Expected, compiler: str
) -> None:
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"{compiler} is not installed: no AddressSanitizer run with it")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [found, *flags, str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} is installed without its AddressSanitizer runtime")
    program = loader_tools.build_program(tmp_path / "verdicts", HERE / "verdicts.c", [found], flags)
    _compare(program, tmp_path, expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_sound(name: str) -> None:
    expected = {"unsigned": "SIGNATURE_MISSING", "stranger": "KEY_UNKNOWN", "older": "DOWNGRADE"}
    assert im_corpus.verdict(SAMPLES[name]) == "OK"
    assert im_corpus.verdict(SAMPLES[name], im_corpus.TRUSTED) == expected.get(name, "OK")


class Judge:
    """The C loader's verdicts in process, on a 16-byte aligned copy."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        ffi = loader.ffi
        (identity, public_key) = next(iter(im_corpus.TRUSTED.keys.items()))
        self.key = ffi.new("tim_key *", {"id": identity, "public_key": public_key})
        self.platform = ffi.new(
            "tim_platform *", {"keys": self.key, "key_count": 1, "kinds": 0x7E, "isas": 0x3FF, "features": 63}
        )

    def __call__(self, image: bytes) -> tuple[str, str]:
        ffi, lib = self.loader.ffi, self.loader.lib
        buffer = ffi.new("uint8_t[]", len(image) + 16)
        start = -int(ffi.cast("uintptr_t", buffer)) % 16
        ffi.memmove(buffer + start, image, len(image))
        module = ffi.new("tim_module *")
        parsed = lib.tim_parse(buffer + start, len(image), module)
        verified = parsed or lib.tim_verify(module, self.platform, im_corpus.MINIMUM_COUNTER)
        return self.loader.status(parsed), self.loader.status(verified)


@pytest.fixture(scope="module")
def judge(loader: Any) -> Judge:
    return Judge(loader)


@st.composite
def _mangled(draw: st.DrawFn) -> bytes:
    image = bytearray(draw(st.sampled_from(list(SAMPLES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        operation = draw(st.sampled_from(["set", "word", "cut", "insert", "copy"]))
        at = draw(st.integers(0, max(0, len(image) - 1)))
        if operation == "set" and image:
            image[at] = draw(st.integers(0, 255))
        elif operation == "word":
            image[at : at + 4] = struct.pack("<I", draw(st.integers(0, 2**32 - 1)))
        elif operation == "cut":
            del image[at : at + draw(st.integers(1, 64))]
        elif operation == "insert":
            image[at:at] = draw(st.binary(max_size=64))
        else:
            other = draw(st.sampled_from(list(SAMPLES.values())))
            image[at : at + 48] = other[at : at + 48]
    if draw(st.booleans()) and len(image) >= 12:
        image[8:12] = struct.pack("<I", len(image))
    return bytes(image)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(image=_mangled())
def test_mangled_modules_get_the_same_verdict_in_c_and_python(judge: Judge, image: bytes) -> None:
    assert judge(image) == im_corpus.verdicts(image)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(image=st.binary(max_size=2048))
def test_random_bytes_get_the_same_verdict_in_c_and_python(judge: Judge, image: bytes) -> None:
    assert judge(image) == im_corpus.verdicts(image)


def test_an_image_at_an_odd_address_is_refused(loader: Any) -> None:
    """The loader reads words in place: IM-LOAD-001."""
    image = SAMPLES["native"]
    buffer = loader.ffi.new("uint8_t[]", len(image) + 32)
    start = -int(loader.ffi.cast("uintptr_t", buffer)) % 16 + 4
    loader.ffi.memmove(buffer + start, image, len(image))
    module = loader.ffi.new("tim_module *")
    assert loader.status(loader.lib.tim_parse(buffer + start, len(image), module)) == "MISALIGNED"


def test_key_ids_are_the_start_of_sha512_of_the_key() -> None:
    """IM-SIGN-004: ids in the ring, in the module and in the firmware are made alike."""
    (identity, public_key) = next(iter(im_corpus.TRUSTED.keys.items()))
    assert identity == key_id(public_key)
    assert parse(SAMPLES["native"]).signatures[0].key_id == identity
