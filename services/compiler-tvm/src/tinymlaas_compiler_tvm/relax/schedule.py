"""Schedules of fused TIR functions: register tiles over channels and pixels, epilogues inside the tile, padding kept apart."""

from __future__ import annotations

from typing import Any

# Accumulators of a tile: Armv7E-M's FPU has 32 registers of single precision.
_CHANNEL_TILE = 4
_PIXEL_TILE = 5
# IterVar's kind of a reduction axis.
_REDUCE = 2


def _divisor(extent: int, limit: int) -> int:
    return max(d for d in range(1, limit + 1) if extent % d == 0)


def _rectangle(size: int, width: int, limit: int) -> int:
    """The largest run of `size` fused pixels that is a rectangle: parts of a row, or whole rows.

    An epilogue computes the rectangle around a tile, which must not hold pixels of other tiles.
    """
    runs = [run for run in range(1, limit + 1) if size % run == 0 and (width % run == 0 or run % width == 0)]
    return max(runs)


def _is_reduction(schedule: Any, block: Any) -> bool:
    return any(int(axis.iter_type) == _REDUCE for axis in schedule.get(block).iter_vars)


def schedule_function(function: Any) -> Any:
    """A scheduled copy of a PrimFunc; where a rule does not apply, the function stays as TVM made it."""
    import tvm
    from tvm import s_tir

    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    blocks = list(schedule.get_child_blocks(schedule.get_sblock("root")))
    reductions = [b for b in blocks if _is_reduction(schedule, b)]
    if len(reductions) != 1:
        return _inline_all(schedule, blocks)
    main = reductions[0]
    position = [schedule.get(b).name_hint for b in blocks].index(schedule.get(main).name_hint)
    epilogue = blocks[position + 1 :]
    padding = [b for b in blocks[:position] if _copies_with_padding(schedule, b)]
    for block in blocks[:position]:
        # Real padding stays a buffer: a test in the innermost loop costs more than the copy.
        if block not in padding:
            _try(lambda block=block: schedule.compute_inline(block))
    while len(epilogue) > 1 and _try(lambda: schedule.reverse_compute_inline(epilogue[-1])):
        epilogue.pop()
    last = epilogue[0] if len(epilogue) == 1 else None
    loops = schedule.get_loops(main)
    kinds = [int(axis.iter_type) for axis in schedule.get(main).iter_vars]
    if len(loops) != len(kinds):
        return schedule.mod["main"]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != _REDUCE]
    if not spatial:
        return schedule.mod["main"]
    reduce = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == _REDUCE]
    extents = [int(schedule.get(loop).extent) for loop in spatial]
    if len(spatial) == 4:
        inner, anchor = _tile_image(schedule, main, spatial, reduce, extents, padding)
    else:
        outer_loop, inner_loop = schedule.split(spatial[-1], [None, _divisor(extents[-1], 2 * _CHANNEL_TILE)])
        schedule.reorder(*spatial[:-1], outer_loop, *reduce, inner_loop)
        inner, anchor = [inner_loop], outer_loop
    for loop in inner:
        schedule.unroll(loop)
    if last is not None and _try(lambda: schedule.reverse_compute_at(last, anchor)):
        for loop in schedule.get_loops(last)[-len(inner) :]:
            _try(lambda loop=loop: schedule.unroll(loop))
    _try(lambda: schedule.decompose_reduction(main, reduce[0]))
    return schedule.mod["main"]


def _tile_image(
    schedule: Any, main: Any, spatial: list[Any], reduce: list[Any], extents: list[int], padding: list[Any]
) -> tuple[list[Any], Any]:
    """NCHW (or any four spatial loops): tiles of channels by pixels; one channel at a time where each has its own input."""
    batch, channel, row, column = spatial
    if "group" in schedule.get(main).name_hint or "depthwise" in schedule.get(main).name_hint:
        column_outer, column_inner = schedule.split(column, [None, _divisor(extents[3], 2 * _PIXEL_TILE)])
        schedule.reorder(batch, channel, row, column_outer, *reduce, column_inner)
        for block in padding:
            _try(lambda block=block: schedule.compute_at(block, channel))
        return [column_inner], column_outer
    fuse = all(int(schedule.get(loop).extent) == 1 for loop in reduce[1:])
    pixels = schedule.fuse(row, column) if fuse else column
    size = extents[2] * extents[3] if fuse else extents[3]
    outer = [batch] if fuse else [batch, row]
    channel_outer, channel_inner = schedule.split(channel, [None, _divisor(extents[1], _CHANNEL_TILE)])
    tile = _rectangle(size, extents[3], _PIXEL_TILE) if fuse else _divisor(size, _PIXEL_TILE)
    pixel_outer, pixel_inner = schedule.split(pixels, [None, tile])
    schedule.reorder(*outer, channel_outer, pixel_outer, *reduce, channel_inner, pixel_inner)
    return [channel_inner, pixel_inner], pixel_outer


def _copies_with_padding(schedule: Any, block: Any) -> bool:
    """Whether a block copies one buffer into a larger one."""
    body = schedule.get(block)
    if not body.reads or not body.writes:
        return False

    def elements(region: Any) -> int:
        total = 1
        for extent in region.source.ty.shape:
            total *= int(extent)
        return total

    return len(body.reads) == 1 and elements(body.writes[0]) > elements(body.reads[0])


def _inline_all(schedule: Any, blocks: list[Any]) -> Any:
    for block in blocks:
        if not _is_reduction(schedule, block):
            name = schedule.get(block).name_hint
            if "exp" not in name:
                _try(lambda block=block: schedule.compute_inline(block))
    return schedule.mod["main"]


def _try(action: Any) -> bool:
    """Whether a schedule step applied; a refused step leaves the schedule as it was."""
    from tvm.s_tir import ScheduleError

    try:
        action()
    except ScheduleError:
        return False
    return True
