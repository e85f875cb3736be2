"""What a module's own evidence says before a byte of it goes out: its certificate, and whether it fits the device.

Pure functions (spec/device-orchestration.md, DO-EVID). The rules are those of the module package: the checker of
certificates and the arithmetic of fit are not repeated here.
"""

from __future__ import annotations

from tinymlaas_module import (
    CertificateError,
    CriticalFlag,
    DeviceMemory,
    Module,
    PayloadKind,
    Requirement,
    check_certificate,
    decode_certificate,
    fit,
)

from .errors import BridgeError, Reason
from .install_plan import DeviceView, SlotView

_MAX_TEXT = 200
_UNDECODABLE = "IM-SECT-010"


def proven_requirement(module: Module) -> Requirement:
    """What a module needs, as its checked certificate states; as its header states where it needs no certificate.

    Raises CERTIFICATE_MISSING for a NATIVE module without one, and CERTIFICATE_INVALID (`clause`, `detail`) for one that
    breaks a rule, of whatever kind the module is. May take seconds for a hostile certificate.
    """
    if module.certificate is None:
        if module.header.kind is PayloadKind.NATIVE:
            raise BridgeError(
                Reason.CERTIFICATE_MISSING, "the image has no memory certificate", kind=module.header.kind.name
            )
        return Requirement.of(module)
    try:
        certificate = decode_certificate(module.certificate)
    except CertificateError as error:
        raise _invalid(_UNDECODABLE, str(error), 1) from error
    violations = check_certificate(certificate, module)
    if violations:
        first = violations[0]
        raise _invalid(first.rule, f"{first.subject}: {first.detail}", len(violations))
    if module.header.kind is not PayloadKind.NATIVE:
        return Requirement.of(module)
    return Requirement.certified(
        certificate, module.image_bytes, stateful=CriticalFlag.STATEFUL in module.header.critical_flags
    )


def _invalid(clause: str, text: str, violations: int) -> BridgeError:
    shown = "".join(character for character in text[:_MAX_TEXT] if character.isprintable())
    return BridgeError(
        Reason.CERTIFICATE_INVALID, f"{clause} {shown}", clause=clause, detail=shown, violations=violations
    )


def check_fit(need: Requirement, view: DeviceView, slot: SlotView) -> None:
    """Raise DOES_NOT_FIT (`region`, `need`, `have`) where the slot or the RAM that the device reports is too small.

    RAM Free is what one module can use, the active one's arena included (DO-CAP-006), so nothing is added for a module
    that is replaced. What a device does not report (slot size, RAM, how it aligns arenas) is not held against the
    module: the device checks again itself (DO-INST-010).
    """
    memory = DeviceMemory(
        flash_free=need.image_bytes if slot.size is None else slot.size,
        ram_free=need.arena_bytes + need.stack_bytes if view.ram_free is None else view.ram_free,
        arena_alignment=need.arena_alignment,
    )
    result = fit(need, memory)
    if result.fits:
        return
    short = next(region for region in result.regions if region.missing)
    names = {"flash": f"slot{slot.index}", "RAM": "ram"}
    raise BridgeError(
        Reason.DOES_NOT_FIT,
        f"the module {result.smallest_change}",
        region=names[short.region],
        need=short.need,
        have=short.have,
    )
