"""LwM2M bridge: tells of devices and their capabilities, installs, activates, removes and observes modules."""

from .bridge import Bridge, BridgeSettings, Inference
from .coap.bootstrap import BootstrapSettings
from .coap.endpoint import CoapSettings
from .coap.link import LinkSettings
from .core.bootstrap import Account, BootstrapRecord, BootstrapState
from .core.catalogue import Board, Catalogue
from .core.errors import BridgeError, Reason
from .core.install_record import Failure, InstallEvent, InstallRequest, Step, Transfer
from .core.install_run import InstallSettings
from .core.ports import ArtifactSource, ImageCheck
from .core.registration import DeviceChange, Registration
from .core.telemetry import Observation
from .images import SignedImages
from .store import SqlStore

__all__ = [
    "Account",
    "ArtifactSource",
    "Board",
    "BootstrapRecord",
    "BootstrapSettings",
    "BootstrapState",
    "Bridge",
    "BridgeError",
    "BridgeSettings",
    "Catalogue",
    "CoapSettings",
    "DeviceChange",
    "Failure",
    "ImageCheck",
    "Inference",
    "InstallEvent",
    "InstallRequest",
    "InstallSettings",
    "LinkSettings",
    "Observation",
    "Reason",
    "Registration",
    "SignedImages",
    "SqlStore",
    "Step",
    "Transfer",
]
