"""A module's profile shows every operator, what moved where, and sums that add up."""

from __future__ import annotations

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import measurement_pb2
from tinymlaas_client.cli.profile_command import picture, rows, table


def candidate() -> builds_pb2.Candidate:
    """Two nodes, constants that they share, and what lies outside of them."""
    profile = measurement_pb2.OperatorProfile
    traffic = measurement_pb2.MemoryTraffic(arena_read_bytes=300, payload_read_bytes=100, stack_written_bytes=8)
    return builds_pb2.Candidate(
        plugin="plugins/x.y",
        module="projects/p/modules/abc",
        operators=[
            profile(node="Conv_1", operator="conv2d", instructions=900, flash_bytes=64, estimated_cycles=1200, traffic=traffic),
            profile(node="Softmax_2", operator="softmax", instructions=90, estimated_cycles=100),
            profile(operator="constant", flash_bytes=4096),
            profile(operator="outside", instructions=10, estimated_cycles=15),
        ],
    )  # fmt: skip


def test_rows_keep_what_was_observed_apart_from_what_was_not() -> None:
    conv, softmax, constant, _ = rows(candidate())
    assert conv.moved["arena read"] == 300
    assert conv.moved["stack written"] == 8
    assert softmax.moved == {}
    assert (constant.flash_bytes, constant.instructions) == (4096, 0)


def test_the_table_ends_with_the_sum() -> None:
    shown = table(rows(candidate()))
    columns = {str(column.header): list(column.cells) for column in shown.columns}
    assert columns["instructions"][-1] == "1,000"
    assert columns["cycles est"][-1] == "1,315"
    assert columns["flash B"][-1] == "4,160"
    assert columns["arena read"][1] == "–"


def test_the_picture_has_a_bar_for_everything_that_ran_and_is_a_file_of_its_own() -> None:
    svg = picture(rows(candidate()), "abc")
    assert svg.startswith("<svg xmlns=")
    assert "900 (90.0%)" in svg
    assert "408 B" in svg
    assert "constant " not in svg
    assert svg == picture(rows(candidate()), "abc")
