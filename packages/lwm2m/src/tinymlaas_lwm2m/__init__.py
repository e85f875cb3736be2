"""LwM2M vocabulary that server and device share: object ids, resource types, content formats, link format."""

from .codec import COMPOSITE, Format, decode, decode_composite, decode_paths, encode, encode_composite, encode_paths
from .core_objects import ConnectivityRes, DeviceRes, SecurityMode, SecurityRes, ServerRes
from .execute import format_arguments, parse_arguments
from .firmware_object import FirmwareRes, FirmwareResult, FirmwareState, firmware
from .ipso import IPSO_FIRST, IPSO_LAST, IPSO_SENSORS, IpsoRes
from .library import ObjectLibrary
from .linkformat import ObjectLink, format_discovery, format_registration, parse_discovery, parse_registration
from .ml_object import ML_CAPABILITY, MlRes, SelfTestResult, SlotState, ml
from .model import ObjectDef, Operations, ResourceDef
from .objects import OBJECTS, kind_of
from .software_object import SoftwareRes, UpdateResult, UpdateState, software
from .values import CodecError, Kind, Limits, ObjLink, Path, TypeLookup, Value, Values, instances, multiple, single

__all__ = [
    "COMPOSITE",
    "IPSO_FIRST",
    "IPSO_LAST",
    "IPSO_SENSORS",
    "ML_CAPABILITY",
    "OBJECTS",
    "CodecError",
    "ConnectivityRes",
    "DeviceRes",
    "FirmwareRes",
    "FirmwareResult",
    "FirmwareState",
    "Format",
    "IpsoRes",
    "Kind",
    "Limits",
    "MlRes",
    "ObjLink",
    "ObjectDef",
    "ObjectLibrary",
    "ObjectLink",
    "Operations",
    "Path",
    "ResourceDef",
    "SecurityMode",
    "SecurityRes",
    "SelfTestResult",
    "ServerRes",
    "SlotState",
    "SoftwareRes",
    "TypeLookup",
    "UpdateResult",
    "UpdateState",
    "Value",
    "Values",
    "decode",
    "decode_composite",
    "decode_paths",
    "encode",
    "encode_composite",
    "encode_paths",
    "firmware",
    "format_arguments",
    "format_discovery",
    "format_registration",
    "instances",
    "kind_of",
    "ml",
    "multiple",
    "parse_arguments",
    "parse_discovery",
    "parse_registration",
    "single",
    "software",
]
