"""What is told from any message: which resources it names, and its text without secrets (spec/access.md)."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog
from google.longrunning import operations_pb2
from google.protobuf import json_format, timestamp_pb2
from opentelemetry import trace

from tinymlaas.bridge.v1 import security_pb2
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, routing_pb2
from tinymlaas.registry.v1 import access_pb2, models_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_servicekit import ServiceSettings, configure_logging, redacted
from tinymlaas_servicekit.messages import MAX_TEXT, named_in, project_of


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (models_pb2.GetModelRequest(name="projects/p/models/m"), ["projects/p/models/m"]),
        (operations_pb2.ListOperationsRequest(name="//projects/p"), ["projects/p"]),
        (
            builds_pb2.CreateBuildRequest(
                parent="projects/p", build=builds_pb2.Build(model_version="projects/q/models/m/versions/1")
            ),
            ["projects/p", "projects/q/models/m/versions/1"],
        ),
        (
            deployments_pb2.Deployment(devices=["projects/p/devices/a", "elsewhere", "projects/q/devices/b"]),
            ["projects/p/devices/a", "projects/q/devices/b"],
        ),
        (
            routing_pb2.ExplainRequest(destinations=[routing_pb2.Destination(device="projects/r/devices/d")]),
            ["projects/r/devices/d"],
        ),
        (models_pb2.ImportModelRequest(chunk=models_pb2.ModelChunk(data=b"projects/p/models/m")), []),
        (models_pb2.GetModelRequest(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_name_of_a_project_is_found_in_whichever_field(message, names: list[str]) -> None:
    assert list(named_in(message)) == names


def test_names_in_the_keys_and_values_of_maps_are_found() -> None:
    build = builds_pb2.Build()
    build.options["projects/p/things/1"].update({"text": "projects/not-a-name"})
    objection = routing_pb2.Objection(metadata={"projects/k/things/1": "projects/v/things/1"})
    assert list(named_in(build)) == ["projects/p/things/1"]
    assert list(named_in(objection)) == ["projects/k/things/1", "projects/v/things/1"]


def test_the_project_of_a_name_is_its_second_segment() -> None:
    assert [project_of(name) for name in ("projects/p", "projects/p/models/m", "projects/")] == ["p", "p", ""]


def test_secrets_and_bytes_are_left_out_of_texts() -> None:
    made = security_pb2.CreateDeviceKeyResponse(key=security_pb2.DeviceKey(endpoint="d"), secret=b"sixteen bytes...")
    chunk = models_pb2.ImportModelRequest(chunk=models_pb2.ModelChunk(offset=3, data=b"\0" * 1000))
    key = access_pb2.CreateApiKeyResponse(secret="tml_secret", api_key=access_pb2.ApiKey(display_name="ci"))
    assert json.loads(redacted(made)) == {"key": {"endpoint": "d"}, "secret": "[redacted]"}
    assert json.loads(redacted(chunk)) == {"chunk": {"offset": "3"}, "chunk.data": "1000 bytes"}
    assert json.loads(redacted(key)) == {"api_key": {"display_name": "ci"}, "secret": "[redacted]"}
    assert key.secret == "tml_secret"  # the message itself is as it was


def test_without_secrets_and_bytes_a_text_is_what_json_format_writes() -> None:
    build = builds_pb2.Build(
        name="projects/p/builds/b",
        state=builds_pb2.Build.STATE_QUEUED,
        cached=True,
        security_counter=7,
        target=target_pb2.Target(
            cpu="cortex-m4",
            payload_kinds=[target_pb2.PAYLOAD_KIND_NATIVE],
            memory_regions=[target_pb2.MemoryRegion(name="ram", total_bytes=1 << 40)],
        ),
        candidates=[builds_pb2.Candidate(plugin="plugins/a"), builds_pb2.Candidate(plugin="plugins/b")],
    )
    build.create_time.FromSeconds(1_700_000_000)
    build.options["plugins/a"].update({"tune": 1.5, "deep": {"list": [None, True, "text"]}})
    build.candidates[0].measurements.add(value=0.1)
    objection = routing_pb2.Objection(metadata={"b": "2", "a": "1"})
    page = models_pb2.ListModelsRequest(parent="projects/p", page_size=3)
    for message in (build, objection, page):
        assert json.loads(redacted(message, 1 << 20)) == json_format.MessageToDict(
            message, preserving_proto_field_name=True
        )


def test_what_json_cannot_tell_is_told_by_size_or_type() -> None:
    build = builds_pb2.Build(create_time=timestamp_pb2.Timestamp(seconds=1 << 60))
    build.error.details.add(type_url="type.googleapis.com/no.such.Type", value=b"1")
    assert json.loads(redacted(build)) == {
        "error": {"details": [{"@type": "type.googleapis.com/no.such.Type"}]},
        "create_time": "10 bytes",
    }


def test_long_texts_are_cut() -> None:
    text = redacted(models_pb2.Model(display_name="x" * 10_000))
    assert len(text) == MAX_TEXT
    assert text.endswith("…")


@contextmanager
def logged(monkeypatch: pytest.MonkeyPatch, log_format: str) -> Iterator[io.StringIO]:
    """What is logged inside; afterwards logging is as it was."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    before, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure_logging(ServiceSettings(_env_file=None, log_format=log_format))  # type: ignore[call-arg, arg-type]
        yield out
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(level)
        structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_message_in_a_log_event_is_written_without_its_secrets(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged(monkeypatch, log_format) as lines:
        message = security_pb2.CreateDeviceKeyRequest(endpoint="board-7", secret=b"0123456789abcdef")
        structlog.get_logger("test").info("asked", request=message)
    assert "board-7" in lines.getvalue()
    assert "[redacted]" in lines.getvalue()
    assert "0123456789abcdef" not in lines.getvalue()


def test_a_log_line_has_the_ids_of_its_trace_and_span_and_none_outside_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of libraries too, which log by Python's own module."""
    span = trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False)
    with logged(monkeypatch, "json") as lines:
        with trace.use_span(trace.NonRecordingSpan(span)):
            structlog.get_logger("test").info("inside")
            logging.getLogger("library").warning("inside too")
        structlog.get_logger("test").info("outside")
    inside, library, outside = (json.loads(line) for line in lines.getvalue().splitlines())
    for line in (inside, library):
        assert (line["trace_id"], line["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert not {"trace_id", "span_id"} & outside.keys()
