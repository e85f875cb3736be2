"""The arena planner: nothing that lives together overlaps, and small instances reach the lower bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas_compiler_tvm.native.planner import ALIGNMENT, Request, lower_bound, plan_arena

requests = st.lists(
    st.builds(
        lambda size, first, length: Request(size, first, first + length),
        st.integers(1, 5000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(requests)
def test_buffers_that_live_together_do_not_overlap(wanted: list[Request]) -> None:
    plan = plan_arena(wanted)
    placed = list(zip(wanted, plan.offsets, strict=True))
    for i, (a, at) in enumerate(placed):
        assert at % ALIGNMENT == 0
        assert at + a.size <= plan.size
        for b, bt in placed[i + 1 :]:
            if a.first <= b.last and b.first <= a.last:
                assert at + a.size <= bt or bt + b.size <= at


@settings(max_examples=40, deadline=None, derandomize=True)
@given(requests)
def test_no_plan_is_below_the_lower_bound(wanted: list[Request]) -> None:
    assert plan_arena(wanted).size >= lower_bound(wanted)


def test_equal_requests_give_equal_plans() -> None:
    wanted = [Request(100 + 7 * i, i, i + 2) for i in range(12)]
    assert plan_arena(wanted) == plan_arena(list(wanted))


def test_a_chain_of_layers_needs_its_two_largest_neighbours() -> None:
    sizes = [4096, 8192, 2048, 1024, 64]
    wanted = [Request(size, max(i - 1, 0), i) for i, size in enumerate(sizes)]
    assert plan_arena(wanted).size == 4096 + 8192 + 0
