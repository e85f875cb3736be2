"""Errors keep code, reason, message, metadata and help on their way over the wire."""

from __future__ import annotations

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas_servicekit import FieldViolation, InvalidArgument, ServiceError, adapt, error_for, errors, from_status

CLASSES = [cls for cls in errors._tree(ServiceError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_grpc_code_a_reason_and_help(cls: type[ServiceError]) -> None:
    error = cls("words")
    assert error.code in errors._CODES
    assert errors._REASON.match(error.reason)
    assert error.help


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_class_survives_the_wire(cls: type[ServiceError]) -> None:
    sent = cls("words", "SOME_REASON", {"need": 12, "have": 3}, "do this")
    got = from_status(sent.to_status())
    assert type(got) is cls
    assert (got.code, got.reason, got.message, got.metadata, got.help) == (
        sent.code,
        "SOME_REASON",
        "words",
        {"need": "12", "have": "3"},
        "do this",
    )


def test_every_class_has_a_code_of_its_own() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_a_failed_precondition_carries_a_precondition_failure() -> None:
    status = errors.FailedPrecondition("no", "DOES_NOT_FIT", {"subject": "sram0"}).to_status()
    failure = error_details_pb2.PreconditionFailure()
    assert any(detail.Unpack(failure) for detail in status.details if detail.Is(failure.DESCRIPTOR))
    assert (failure.violations[0].type, failure.violations[0].subject) == ("DOES_NOT_FIT", "sram0")


def test_field_violations_survive_the_wire() -> None:
    violations = (FieldViolation("a.b", "is required"), FieldViolation("c", "too long"))
    assert from_status(InvalidArgument("no", violations=violations).to_status()).violations == violations


@given(
    message=st.text(max_size=5000),
    metadata=st.dictionaries(st.text(min_size=1, max_size=200), st.text(max_size=5000), max_size=40),
    help_text=st.text(max_size=5000),
)
def test_a_status_always_fits_the_trailers_of_http2(message: str, metadata: dict[str, str], help_text: str) -> None:
    status = InvalidArgument(message, metadata=metadata, help=help_text).to_status()
    # Every character may take four bytes; the point is that the size is bounded whatever went in.
    assert status.ByteSize() <= 4 * (2 * errors.MAX_MESSAGE + errors.MAX_METADATA_TOTAL) + 1024


class _CoreError(Exception):
    code = "FAILED_PRECONDITION"
    reason = "OP_UNSUPPORTED"
    help = "use another"

    def __init__(self) -> None:
        super().__init__("no Gelu")
        self.metadata = {"op": "Gelu"}


def test_the_errors_of_cores_are_recognised_by_their_attributes() -> None:
    adapted = adapt(_CoreError())
    assert isinstance(adapted, errors.FailedPrecondition)
    assert (adapted.reason, adapted.message, adapted.metadata, adapted.help) == (
        "OP_UNSUPPORTED",
        "no Gelu",
        {"op": "Gelu"},
        "use another",
    )


@pytest.mark.parametrize(
    "attributes",
    [{}, {"code": 3}, {"code": "INVALID_ARGUMENT"}, {"code": "NOPE", "reason": "X"}, {"code": "OK", "reason": "X"}],
)
def test_other_exceptions_are_not_adapted(attributes: dict[str, object]) -> None:
    error = ValueError("x")
    for name, value in attributes.items():
        setattr(error, name, value)
    assert adapt(error) is None


def test_a_code_without_a_class_keeps_its_name() -> None:
    error = from_status(error_for("OUT_OF_RANGE", "far").to_status())
    assert (error.code, error.reason) == ("OUT_OF_RANGE", "OUT_OF_RANGE")


def test_a_call_that_was_cut_off_is_unavailable_and_another_internal_error_is_not() -> None:
    def told(details: str) -> str:
        error = grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details
        )
        return errors.from_rpc_error(error).code

    assert told(errors.CUT_OFF) == "UNAVAILABLE"
    assert told("a fault of ours") == "INTERNAL"
