"""Frames between a plugin's server and its worker process: one byte of kind, four of length, the content."""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("!BI")
# A frame becomes one gRPC message at most.
MAX_FRAME = 4 * 1024 * 1024 - 64 * 1024
# What a worker prints behind a job's own output, so that the server knows when it has read all of it.
END_OF_OUTPUT = b"\0end of job\0"


class Kind(IntEnum):
    """What a frame is; its content is named behind it."""

    JOB = 1  # JSON {"kind", "folder"}, server to worker
    READY = 2  # empty
    PROGRESS = 3  # tinymlaas.plugin.v1.Progress
    LOG = 4  # tinymlaas.plugin.v1.LogLine
    RESULT = 5  # the RPC's result message
    ERROR = 6  # google.rpc.Status
    EXITED = 7  # never sent: made by the server when the worker's end closes
    PRINTED = 8  # never sent: made by the server when it has read all that the job printed
    BEGUN = 9  # empty: the worker has taken the job and is about to run it


class FrameError(Exception):
    """The bytes are no frame of ours."""


def encode(kind: Kind, content: bytes) -> bytes:
    """The bytes of a frame; FrameError when the content is over MAX_FRAME."""
    if len(content) > MAX_FRAME:
        raise FrameError(f"a frame of {len(content)} bytes is over the limit of {MAX_FRAME}")
    return HEADER.pack(kind, len(content)) + content


def decode_header(header: bytes) -> tuple[Kind, int]:
    """Kind and length of the frame that begins with these five bytes; FrameError for anything else."""
    number, length = HEADER.unpack(header)
    if number not in Kind._value2member_map_ or length > MAX_FRAME:
        raise FrameError(f"no frame: kind {number}, length {length}")
    return Kind(number), length
