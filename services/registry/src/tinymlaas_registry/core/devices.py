"""What a write makes of a device's record: the fields that its mask names, and nothing where it came too late."""

from __future__ import annotations

from collections.abc import Sequence

from google.api import field_behavior_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_servicekit import FieldViolation, InvalidArgument

_FIXED = {field_behavior_pb2.IDENTIFIER, field_behavior_pb2.OUTPUT_ONLY}
WRITABLE = tuple(
    field.name
    for field in devices_pb2.Device.DESCRIPTOR.fields
    if not _FIXED.intersection(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
)
"""The fields of a device that a mask may name."""
_SHOWN = 64


def checked_paths(mask: FieldMask) -> Sequence[str]:
    """The fields that a mask names, each once; InvalidArgument / UPDATE_MASK_INVALID where it names anything else."""
    paths = tuple(dict.fromkeys(mask.paths))
    wrong = [path for path in paths if path not in WRITABLE]
    if wrong:
        raise InvalidArgument(
            f"update_mask names {wrong[0][:_SHOWN]!r}, which is no field of a device that can be written",
            "UPDATE_MASK_INVALID",
            {"field": "update_mask", "path": wrong[0][:_SHOWN]},
            f"Name whole fields, of these: {', '.join(WRITABLE)}. Without a mask the whole record is replaced.",
            violations=[FieldViolation("update_mask", f"{path[:_SHOWN]!r} cannot be written") for path in wrong],
        )
    return paths


def written(
    known: devices_pb2.Device | None, told: devices_pb2.Device, paths: Sequence[str], now: Timestamp
) -> devices_pb2.Device:
    """The record that a write leaves where `known` was; `paths` are `checked_paths`, none of them: all fields.

    What is older than the record, by `last_seen_time`, changes nothing. A recorded time that is later than `now` is a wrong
    clock's and refuses nothing: else the device would stay as it is until then.
    """
    if not paths:
        return told
    if known is None:
        known = devices_pb2.Device(name=told.name)
    elif "last_seen_time" in paths and _ns(told.last_seen_time) < _ns(known.last_seen_time) <= _ns(now):
        return known
    record = devices_pb2.Device()
    record.CopyFrom(known)
    FieldMask(paths=paths).MergeMessage(told, record, replace_message_field=True, replace_repeated_field=True)
    return record


def _ns(time: Timestamp) -> int:
    return time.seconds * 10**9 + time.nanos
