"""Fit is arithmetic on what was certified and what the device reports (IM-FIT-001 to IM-FIT-005)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinymlaas_module import DeviceMemory, FitResult, MemoryCertificate, RegionFit, Requirement, fit, pack, parse
from tinymlaas_module import corpus as im_corpus

NEED = Requirement(image_bytes=10_000, arena_bytes=8_000, arena_alignment=16, stack_bytes=500)


def test_a_module_that_fits_says_so_region_by_region() -> None:
    result = fit(NEED, DeviceMemory(flash_free=12_288, ram_free=8_000, flash_page=4096, stack_free=512))
    assert result.fits
    assert result.regions == (
        RegionFit("flash", 12_288, 12_288),
        RegionFit("RAM", 8_000, 8_000),
        RegionFit("stack", 500, 512),
    )
    assert result.smallest_change == ""


def test_one_byte_too_few_does_not_fit_and_the_smallest_change_is_named() -> None:
    """IM-FIT-001."""
    result = fit(NEED, DeviceMemory(flash_free=9_999, ram_free=7_999, stack_free=499))
    assert not result.fits
    assert [region.missing for region in result.regions] == [1, 1, 1]
    assert result.smallest_change == "needs 1 B more flash and 1 B more RAM and 1 B more stack"


def test_flash_is_counted_in_whole_pages() -> None:
    """IM-FIT-002."""
    assert not fit(NEED, DeviceMemory(flash_free=10_000, ram_free=9_000, flash_page=1024)).fits
    assert fit(NEED, DeviceMemory(flash_free=10_240, ram_free=9_000, flash_page=1024)).fits


def test_stack_comes_out_of_ram_where_nobody_reports_it() -> None:
    """IM-FIT-003."""
    assert fit(NEED, DeviceMemory(flash_free=10_000, ram_free=8_500)).fits
    assert fit(NEED, DeviceMemory(flash_free=10_000, ram_free=8_499)).regions[1] == RegionFit("RAM", 8_500, 8_499)


def test_modules_without_state_take_turns_in_a_shared_arena() -> None:
    """IM-FIT-004."""
    shared = DeviceMemory(flash_free=10_000, ram_free=0, stack_free=500, shared_arena=8_000)
    assert fit(NEED, shared).fits
    stateful = Requirement(10_000, 8_000, 16, 500, stateful=True)
    assert fit(stateful, shared).regions[1] == RegionFit("RAM", 8_000, 0)
    small = DeviceMemory(flash_free=10_000, ram_free=0, stack_free=500, shared_arena=7_999)
    assert fit(NEED, small).regions[1].missing == 8_000


def test_stricter_alignment_than_the_devices_may_cost_the_difference() -> None:
    """IM-FIT-005."""
    aligned = Requirement(10_000, 8_000, 64, 500)
    assert fit(aligned, DeviceMemory(flash_free=10_000, ram_free=8_000, stack_free=500)).regions[1].missing == 48
    assert fit(aligned, DeviceMemory(flash_free=10_000, ram_free=8_000, stack_free=500, arena_alignment=64)).fits


def test_the_requirement_of_a_module_is_its_headers() -> None:
    module = parse(pack(im_corpus.native_contents()))
    assert Requirement.of(module) == Requirement(module.image_bytes, 64, 16, 128)


def test_the_requirement_of_a_certificate_is_what_it_states() -> None:
    certificate = MemoryCertificate((), 8_000, 16, 500, "stack-usage")
    assert Requirement.certified(certificate, 10_000) == NEED


_bytes = st.integers(0, 1 << 24)


@given(
    need=st.builds(Requirement, _bytes, _bytes, st.sampled_from([16, 32, 64, 4096]), _bytes, st.booleans()),
    memory=st.builds(
        DeviceMemory, _bytes, _bytes, st.sampled_from([1, 256, 4096]), st.none() | _bytes, st.just(0) | _bytes
    ),
)
def test_granting_exactly_what_is_missing_makes_it_fit(need: Requirement, memory: DeviceMemory) -> None:
    result: FitResult = fit(need, memory)
    missing = {region.region: region.missing for region in result.regions}
    granted = DeviceMemory(
        memory.flash_free + missing["flash"],
        memory.ram_free + missing["RAM"],
        memory.flash_page,
        None if memory.stack_free is None else memory.stack_free + missing["stack"],
        memory.shared_arena,
        memory.arena_alignment,
    )
    assert fit(need, granted).fits
    if not result.fits and missing["RAM"]:
        one_less = DeviceMemory(
            granted.flash_free, granted.ram_free - 1, memory.flash_page, granted.stack_free, memory.shared_arena,
            memory.arena_alignment,
        )  # fmt: skip
        assert not fit(need, one_less).fits
