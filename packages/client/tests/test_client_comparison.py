"""A comparison marks who is not beaten, gives ratios only where they were measured, and its page needs nothing else."""

from __future__ import annotations

import json
import re

from tinymlaas.gateway.v1 import builds_pb2, routing_pb2
from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_client.comparison import (
    Bar,
    Comparison,
    Entry,
    bars,
    compare,
    entry_of,
    front,
    known_model,
    page,
    peer_of,
    scatter,
    standalone,
)

KWS = "aeea436800704fce17b17292e4412630ad856e9d777c044c64ef748a880bd0ae"
UNITS = {"FLASH_BYTES": "B", "ARENA_BYTES": "B", "STACK_BYTES": "B", "INSTRUCTIONS": "instructions"}


def candidate(module: str, plugin: str = "plugins/io.tinymlaas.compiler-tvm", **figures: float) -> builds_pb2.Candidate:
    """A sealed candidate with figures by metric name; instructions are simulated, bytes linked."""
    return builds_pb2.Candidate(
        plugin=plugin,
        state=builds_pb2.Candidate.STATE_SEALED,
        module=f"projects/p/modules/{module}",
        numerics=tensor_pb2.Numerics(reference=tensor_pb2.REFERENCE_TFLITE, **{"class": 1}),
        measurements=[
            measurement_pb2.Measurement(
                metric=measurement_pb2.Metric.Value(f"METRIC_{name}"),
                value=value,
                unit=UNITS[name],
                method=measurement_pb2.METHOD_SIMULATED if name == "INSTRUCTIONS" else measurement_pb2.METHOD_LINKED,
            )
            for name, value in figures.items()
        ],
    )


def entry(module: str, flash: float, arena: float, instructions: float | None, objective: str = "") -> Entry:
    """An entry for cortex-m4 on the model that the peer is known for."""
    figures = {"FLASH_BYTES": flash, "ARENA_BYTES": arena, "STACK_BYTES": 100.0}
    if instructions is not None:
        figures["INSTRUCTIONS"] = instructions
    return entry_of("cortex-m4", "cortex-m4", candidate(module, **figures), objective, "kws")


def comparison(*entries: Entry) -> Comparison:
    """A comparison of these entries."""
    return compare("kws", "projects/p/models/kws/versions/v", KWS, "kws", entries)


def test_ratios_are_to_the_peer_and_ram_is_arena_and_stack() -> None:
    one = entry("a", 54_078.0, 11_310.0, 3_848_500.0)
    assert one.ratios == {"flash": 0.5, "ram": 0.5, "instructions": 0.5}
    assert one.figures["instructions"].method == "simulated"
    assert one.figures["ram"].method == "linked"
    assert one.peer_cpu == "cortex-m4"


def test_a_figure_that_nobody_measured_has_no_ratio_and_beats_nothing() -> None:
    found = comparison(entry("a", 1000.0, 1000.0, None), entry("b", 1000.0, 1000.0, 5.0)).entries
    assert "instructions" not in found[0].ratios
    assert [each.pareto for each in found] == [False, True]


def test_the_front_holds_whoever_is_not_beaten_in_everything() -> None:
    assert front([(1, 5), (5, 1), (3, 3), (4, 4), (3, 3)]) == [True, True, True, False, True]
    found = comparison(entry("a", 1.0, 9.0, 9.0), entry("b", 9.0, 1.0, 9.0), entry("c", 9.0, 9.0, 9.0)).entries
    assert [each.pareto for each in found] == [True, True, False]


def test_entries_equal_in_every_figure_become_one_with_all_objectives() -> None:
    (one,) = comparison(entry("a", 5.0, 5.0, 5.0, "ram"), entry("b", 5.0, 5.0, 5.0, "flash")).entries
    assert one.objectives == ("ram", "flash")
    assert one.module == "a"


def test_a_rejected_candidate_says_why_and_has_no_figures() -> None:
    objection = routing_pb2.Objection(reason="DOES_NOT_FIT", message="needs 9 B, has 8 B")
    rejected = builds_pb2.Candidate(
        plugin="plugins/x.y",
        state=builds_pb2.Candidate.STATE_REJECTED,
        verdict=routing_pb2.Verdict(objections=[objection]),
    )
    (one,) = comparison(entry_of("cortex-m4", "cortex-m4", rejected)).entries
    assert (one.state, one.pareto, one.figures) == ("rejected", False, {})
    assert one.note == "DOES_NOT_FIT: needs 9 B, has 8 B"
    assert "needs 9 B" in page(comparison(one))


def test_a_cpu_that_the_peer_was_not_measured_on_names_its_stand_in() -> None:
    m0plus, m7 = peer_of("kws", "cortex-m0plus"), peer_of("kws", "cortex-m7")
    assert m0plus is not None
    assert m0plus.cpu == "cortex-m3"
    assert m7 is not None
    assert m7.cpu == "cortex-m4"
    assert peer_of("kws", "rv32imc") is None
    assert peer_of("", "cortex-m4") is None
    assert known_model(KWS) == "kws"
    assert known_model("00" * 32) is None


def test_the_page_needs_no_network_runs_no_script_and_is_the_same_every_time() -> None:
    found = comparison(entry("a", 5e4, 9e3, 3e6), entry("b", 6e4, 9e3, 2e6), entry("c", 4e4, 2e4, None))
    text = page(found)
    assert text == page(found)
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)
    assert text.count("<svg viewBox") >= 2
    assert "instructions not measured" in text
    assert "prefers-color-scheme: dark" in text
    assert json.loads(json.dumps(found.document()))["peer"]["figures"]["cortex-m4"]["instructions"] == 7_697_000


def test_names_from_outside_are_escaped() -> None:
    hostile = '<script>alert("1")</script>'
    found = compare(hostile, hostile, "00", "", [entry_of(hostile, "x", candidate("m", hostile, FLASH_BYTES=5.0))])
    assert "<script" not in page(found)
    assert "<script" not in bars([Bar(hostile, (1.0,), hostile)], [hostile], hostile)


def test_charts_without_a_point_or_with_equal_points_are_drawn() -> None:
    assert "nothing to show" in scatter([], "x", "y")
    text = page(comparison(entry("a", 5.0, 5.0, 5.0)))
    assert "nan" not in text.lower().replace("nano", "")


def test_a_chart_as_a_file_brings_its_colours_and_background() -> None:
    file = standalone(bars([Bar("conv", (10.0, 5.0), "15")], ["read", "written"], "bytes"))
    assert file.startswith("<svg xmlns=")
    assert "--c0" in file
    assert file.endswith("</svg>\n")
