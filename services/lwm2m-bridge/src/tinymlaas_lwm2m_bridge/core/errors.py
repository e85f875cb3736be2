"""Reasons why the bridge refuses or fails (spec/device-orchestration.md, section 9, table of errors)."""

from __future__ import annotations

import re
from enum import StrEnum

from tinymlaas_lwm2m import UpdateResult


class Reason(StrEnum):
    """Machine-readable reason; the name is what callers see."""

    ARGUMENT_INVALID = "ARGUMENT_INVALID"
    DEVICE_UNKNOWN = "DEVICE_UNKNOWN"
    DEVICE_ELSEWHERE = "DEVICE_ELSEWHERE"
    DEVICE_UNREACHABLE = "DEVICE_UNREACHABLE"
    DEVICE_REJECTED = "DEVICE_REJECTED"
    DEVICE_ANSWER_INVALID = "DEVICE_ANSWER_INVALID"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    REGISTRATION_INVALID = "REGISTRATION_INVALID"
    VERSION_UNSUPPORTED = "VERSION_UNSUPPORTED"
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    INSTALL_ID_REUSED = "INSTALL_ID_REUSED"
    INSTALL_UNKNOWN = "INSTALL_UNKNOWN"
    INSTALL_UNSUPPORTED = "INSTALL_UNSUPPORTED"
    INSTALL_CANCELLED = "INSTALL_CANCELLED"
    INSTALL_STUCK = "INSTALL_STUCK"
    CERTIFICATE_MISSING = "CERTIFICATE_MISSING"
    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    DOES_NOT_FIT = "DOES_NOT_FIT"
    SLOT_UNKNOWN = "SLOT_UNKNOWN"
    SLOT_ACTIVE = "SLOT_ACTIVE"
    SLOT_EMPTY = "SLOT_EMPTY"
    NO_FREE_SLOT = "NO_FREE_SLOT"
    DEVICE_STORAGE_FULL = "DEVICE_STORAGE_FULL"
    DEVICE_OUT_OF_MEMORY = "DEVICE_OUT_OF_MEMORY"
    CONNECTION_LOST = "CONNECTION_LOST"
    INTEGRITY_FAILED = "INTEGRITY_FAILED"
    PACKAGE_UNSUPPORTED = "PACKAGE_UNSUPPORTED"
    URI_INVALID = "URI_INVALID"
    DEVICE_ERROR = "DEVICE_ERROR"
    INSTALL_FAILED = "INSTALL_FAILED"
    UNINSTALL_FAILED = "UNINSTALL_FAILED"
    RESULT_UNKNOWN = "RESULT_UNKNOWN"
    SELF_TEST_FAILED = "SELF_TEST_FAILED"
    SELF_TEST_REQUIRED = "SELF_TEST_REQUIRED"
    NO_PREVIOUS_MODULE = "NO_PREVIOUS_MODULE"
    NO_ACTIVE_MODULE = "NO_ACTIVE_MODULE"
    ACTIVATION_FAILED = "ACTIVATION_FAILED"
    INFERENCE_FAILED = "INFERENCE_FAILED"
    PLAIN_COAP_REFUSED = "PLAIN_COAP_REFUSED"
    SESSION_REQUIRED = "SESSION_REQUIRED"
    IDENTITY_MISMATCH = "IDENTITY_MISMATCH"
    IDENTITY_UNKNOWN = "IDENTITY_UNKNOWN"
    KEYS_MISSING = "KEYS_MISSING"
    WATCHER_TOO_SLOW = "WATCHER_TOO_SLOW"


_TABLE: dict[Reason, tuple[str, str]] = {
    Reason.ARGUMENT_INVALID: ("INVALID_ARGUMENT", "Correct the named field and call again."),
    Reason.DEVICE_UNKNOWN: (
        "NOT_FOUND",
        "No such device is registered here: check its name, or wait until it registers.",
    ),
    Reason.DEVICE_ELSEWHERE: (
        "UNAVAILABLE",
        "Call the instance of the bridge that the device is registered at: its address is given where it is known.",
    ),
    Reason.DEVICE_UNREACHABLE: (
        "UNAVAILABLE",
        "The device does not answer: it may sleep or be off; repeat the call later.",
    ),
    Reason.DEVICE_REJECTED: ("FAILED_PRECONDITION", "The device refused the operation: its answer says why."),
    Reason.DEVICE_ANSWER_INVALID: (
        "INTERNAL",
        "The device's answer breaks the standard: report it to the device's maker.",
    ),
    Reason.LIMIT_EXCEEDED: ("RESOURCE_EXHAUSTED", "Stay below the named limit, or raise it in the bridge's settings."),
    Reason.REGISTRATION_INVALID: (
        "INVALID_ARGUMENT",
        "The device must send a registration as LwM2M 1.1 clause 6.2 says.",
    ),
    Reason.VERSION_UNSUPPORTED: (
        "FAILED_PRECONDITION",
        "The bridge speaks LwM2M 1.0 and 1.1: configure the device for one.",
    ),
    Reason.ARTIFACT_NOT_FOUND: ("NOT_FOUND", "Upload the module first, or correct its digest."),
    Reason.DIGEST_MISMATCH: (
        "DATA_LOSS",
        "The artifact store returned other bytes than asked for: repeat, then check the store.",
    ),
    Reason.INSTALL_ID_REUSED: ("ALREADY_EXISTS", "Use a new install_id for another device, module, slot or transfer."),
    Reason.INSTALL_UNKNOWN: (
        "NOT_FOUND",
        "No install has that id here: check it; the device may belong to another bridge.",
    ),
    Reason.INSTALL_UNSUPPORTED: (
        "FAILED_PRECONDITION",
        "The device has neither object 9 nor 5: update its firmware.",
    ),
    Reason.INSTALL_CANCELLED: ("CANCELLED", "Start a new install with a new install_id when wanted."),
    Reason.INSTALL_STUCK: (
        "DEADLINE_EXCEEDED",
        "The device made no progress: look at its timeline, then install with a new id.",
    ),
    Reason.CERTIFICATE_MISSING: (
        "FAILED_PRECONDITION",
        "Install the device image as it was sealed: native code travels with its memory certificate.",
    ),
    Reason.CERTIFICATE_INVALID: (
        "FAILED_PRECONDITION",
        "Don't install it: the certificate contradicts the module. Build it again and report it to the compiler's maker.",
    ),
    Reason.DOES_NOT_FIT: ("FAILED_PRECONDITION", "Build a smaller module, or choose a bigger slot or device."),
    Reason.SLOT_UNKNOWN: ("NOT_FOUND", "Choose one of the device's slots, or none to let the bridge choose."),
    Reason.SLOT_ACTIVE: (
        "FAILED_PRECONDITION",
        "The slot is in use: install into another slot, or deactivate it first.",
    ),
    Reason.SLOT_EMPTY: ("FAILED_PRECONDITION", "Install a module into the slot first."),
    Reason.NO_FREE_SLOT: ("FAILED_PRECONDITION", "Uninstall a module from one of the device's slots first."),
    Reason.DEVICE_STORAGE_FULL: ("FAILED_PRECONDITION", "The device has not enough storage for the module: free some."),
    Reason.DEVICE_OUT_OF_MEMORY: (
        "FAILED_PRECONDITION",
        "The device ran out of memory while downloading: repeat after a reboot.",
    ),
    Reason.CONNECTION_LOST: (
        "UNAVAILABLE",
        "The device lost the connection while downloading: install again, it resumes.",
    ),
    Reason.INTEGRITY_FAILED: ("DATA_LOSS", "The device found the image damaged or not signed by a key it trusts."),
    Reason.PACKAGE_UNSUPPORTED: (
        "FAILED_PRECONDITION",
        "The device can't run such a module: build one for its target.",
    ),
    Reason.URI_INVALID: (
        "FAILED_PRECONDITION",
        "The device can't fetch from the bridge's address: set it, or install by push.",
    ),
    Reason.DEVICE_ERROR: ("INTERNAL", "The device reports an error of its own: its detail says which."),
    Reason.INSTALL_FAILED: ("INTERNAL", "The device could not install the module: its detail says why."),
    Reason.UNINSTALL_FAILED: ("INTERNAL", "The device could not remove the module: its detail says why."),
    Reason.RESULT_UNKNOWN: ("INTERNAL", "The device reports a result that the standard does not define."),
    Reason.SELF_TEST_FAILED: (
        "FAILED_PRECONDITION",
        "The module computes something else on the device: it stays inactive; rebuild it.",
    ),
    Reason.SELF_TEST_REQUIRED: (
        "FAILED_PRECONDITION",
        "Install the module, which runs its self-test, before activating it.",
    ),
    Reason.NO_PREVIOUS_MODULE: ("FAILED_PRECONDITION", "The device keeps no earlier module: install one instead."),
    Reason.NO_ACTIVE_MODULE: ("FAILED_PRECONDITION", "Activate a module first."),
    Reason.ACTIVATION_FAILED: ("INTERNAL", "The device did not switch modules: the module before it is still active."),
    Reason.INFERENCE_FAILED: ("INTERNAL", "The module failed on the device: its detail says why."),
    Reason.PLAIN_COAP_REFUSED: (
        "FAILED_PRECONDITION",
        "Bind to a loopback address, or allow plain CoAP explicitly and know the risk.",
    ),
    Reason.SESSION_REQUIRED: (
        "PERMISSION_DENIED",
        "Give the device its pre-shared key and let it register over DTLS (coaps://).",
    ),
    Reason.IDENTITY_MISMATCH: (
        "PERMISSION_DENIED",
        "Register under the endpoint name that the key was made for, or make a key for this one.",
    ),
    Reason.IDENTITY_UNKNOWN: ("NOT_FOUND", "Make a key for the device, or give it the identity of one that exists."),
    Reason.KEYS_MISSING: (
        "FAILED_PRECONDITION",
        "Set TINYMLAAS_TRUSTED_KEYS (or its file) to the key that seals modules, TINYMLAAS_MASTER_KEY_FILE for device keys.",
    ),
    Reason.WATCHER_TOO_SLOW: ("RESOURCE_EXHAUSTED", "Read the stream faster; watch again to get every device afresh."),
}


class BridgeError(Exception):
    """A call failed; `code` (gRPC name), `reason`, `metadata` and `help` say why and whose move it is."""

    def __init__(
        self, reason: Reason | str, detail: str, /, *, code: str = "", help: str = "", **metadata: str | int
    ) -> None:
        known = _TABLE.get(Reason(reason)) if reason in Reason.__members__ else None
        self.code = code or (known[0] if known else "INTERNAL")
        self.reason = str(reason)
        self.detail = self.message = detail
        self.help = help or (known[1] if known else "")
        self.metadata = {key: str(value) for key, value in metadata.items()}
        super().__init__(f"{self.reason}: {detail}")


RESULT_REASONS: dict[int, Reason] = {
    UpdateResult.NOT_ENOUGH_STORAGE: Reason.DEVICE_STORAGE_FULL,
    UpdateResult.OUT_OF_MEMORY: Reason.DEVICE_OUT_OF_MEMORY,
    UpdateResult.CONNECTION_LOST: Reason.CONNECTION_LOST,
    UpdateResult.INTEGRITY_FAILURE: Reason.INTEGRITY_FAILED,
    UpdateResult.UNSUPPORTED_PACKAGE: Reason.PACKAGE_UNSUPPORTED,
    UpdateResult.INVALID_URI: Reason.URI_INVALID,
    UpdateResult.DEVICE_ERROR: Reason.DEVICE_ERROR,
    UpdateResult.INSTALL_FAILURE: Reason.INSTALL_FAILED,
    UpdateResult.UNINSTALL_FAILURE: Reason.UNINSTALL_FAILED,
}


_DEVICE_REASON = re.compile(r"([A-Z][A-Z0-9_]{2,40})(?::|$)")


def error_of_result(result: int, status_reason: str, slot: int) -> BridgeError:
    """The error for a failed update result of object 9 (`/9/slot/9`); unknown codes become RESULT_UNKNOWN.

    A status reason that begins with a name in capitals, such as `DOWNGRADE: ...`, is given as `device_reason`.
    """
    reason = RESULT_REASONS.get(result, Reason.RESULT_UNKNOWN)
    detail = status_reason or f"update result {result}"
    named = _DEVICE_REASON.match(status_reason)
    more = {"device_reason": named[1]} if named else {}
    return BridgeError(reason, detail, slot=slot, update_result=result, **more)
