"""The specification and its implementations say the same: reasons, numbers, rule ids."""

from __future__ import annotations

import re
from pathlib import Path

from tinymlaas_module import Reason

ROOT = Path(__file__).resolve().parents[3]
SPEC = (ROOT / "spec" / "inference-module.md").read_text(encoding="utf-8")
TESTS = [
    *(ROOT / "packages" / "module" / "tests").glob("test_*.py"),
    *(ROOT / "device" / "loader" / "tests").glob("test_*.py"),
]
# Rules about what other parts do; their tests live there.
ELSEWHERE = {
    "IM-GOLD-005": "compilers and the gateway make golden vectors with the named executor",
    "IM-EXEC-004": "the profiler runs payloads in a simulator that catches every access outside",
    "IM-EXEC-005": "the virtual board sets the Thumb bit and enables the FPU",
    "IM-EXEC-007": "the profiler and the boards limit instructions",
    "IM-CERT-021": "gateway and bridge refuse modules without a sound certificate",
    "IM-CERT-022": "the gateway checks before it seals, and its tests of claims refuse what does not hold",
    "IM-CERT-023": "the bridge checks again before a transfer, and its tests of evidence refuse what does not hold",
    "IM-FIT-007": "the bridge's tests of evidence and the gateway's of routing decide the fit by this package",
    "IM-FIT-008": "the bridge's tests of evidence leave to the device what it does not report",
    "IM-FIT-006": "devices report what is left after everything else",
    "IM-LINK-005": "the bridge's tests of static firmware run packages on a simulated board",
    "IM-VERS-001": "binds future versions",
    "IM-VERS-002": "binds future versions",
}


def _defined() -> list[str]:
    return re.findall(r"\*\*(IM-[A-Z]+-\d{3})\*\*", SPEC)


def test_the_table_of_reasons_is_that_of_python_and_c() -> None:
    table = {int(number): name for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", SPEC, flags=re.M)}
    header = (ROOT / "device" / "loader" / "include" / "tim.h").read_text(encoding="utf-8")
    statuses = re.search(r"typedef enum tim_status \{(.*?)\}", header, flags=re.S)
    assert statuses is not None
    in_c = {int(number): name for name, number in re.findall(r"TIM_(\w+) = (\d+)", statuses[1])}
    in_c.pop(0)
    assert table == in_c
    assert {number: name for number, name in table.items() if number < 32} == {
        reason.value: reason.name for reason in Reason if reason is not Reason.OK
    }


def test_every_rule_has_one_definition() -> None:
    defined = _defined()
    assert len(defined) == len(set(defined))
    assert len(defined) > 80


def test_every_rule_is_cited_by_a_test_and_every_cited_rule_exists() -> None:
    cited: set[str] = set()
    for path in TESTS:
        if path.name == Path(__file__).name:
            continue
        text = path.read_text(encoding="utf-8")
        cited.update(re.findall(r"IM-[A-Z]+-\d{3}", text))
        for start, end in re.findall(r"IM-([A-Z]+-\d{3}) to IM-([A-Z]+-\d{3})", text):
            family, first, last = start[:-4], int(start[-3:]), int(end[-3:])
            cited.update(f"IM-{family}-{number:03d}" for number in range(first, last + 1))
    defined = set(_defined())
    assert cited - defined == set()
    assert defined - cited == set(ELSEWHERE)
