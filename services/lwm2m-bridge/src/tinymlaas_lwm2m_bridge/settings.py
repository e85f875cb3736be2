"""Settings of the bridge, from environment variables `TINYMLAAS_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from tinymlaas_lwm2m import CodecError, ObjectLibrary
from tinymlaas_servicekit import ServiceSettings

from .bridge import BridgeSettings
from .coap.bootstrap import BootstrapSettings
from .coap.endpoint import CoapSettings
from .coap.link import LinkSettings
from .core.bootstrap import Account
from .core.errors import BridgeError, Reason
from .core.install_run import InstallSettings
from .key_store import master_key


class LwM2mBridgeSettings(ServiceSettings):
    """What an operator can set."""

    state_dir: Path = Field(Path("."), description="folder of the bridge's database")
    instance: str = Field(
        "bridge",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        description="name of this bridge among those that share a database, the same after a restart (a pod's name)",
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="a bridge that has been silent for so long is dead: another takes its devices"
    )
    public_address: str = Field("", description="host:port that this bridge is called by; empty: the one it listens on")
    database_url: str = Field("", description="postgresql://... or sqlite:///...; empty: SQLite in the state folder")
    project: str = Field("default", description="project that this bridge's devices belong to")
    registry_address: str = Field("127.0.0.1:7001", description="host:port of the registry")
    coap_listen: str = Field("127.0.0.1:5683", description="host:port for plain CoAP (UDP); port 0 for a free one")
    coap_public_address: str = Field(
        "", description="coap://host:port that devices reach the bridge at; empty: as they did"
    )
    coap_allow_plain: bool = Field(False, description="serve plain CoAP beyond loopback: no security at all")
    coap_datagrams_per_second: float = Field(
        1_000.0, gt=0, description="datagrams that one host beyond loopback may send in a second; others are dropped"
    )
    bootstrap_listen: str = Field("", description="host:port of the bootstrap server (UDP); empty: none is served")
    bootstrap_server_uri: str = Field(
        "", description="coap:// or coaps:// URI that bootstrap gives devices; empty: the address of coap_listen"
    )
    bootstrap_lifetime_seconds: int = Field(300, ge=1, description="lifetime that bootstrap gives devices")
    trusted_keys: str = Field(
        "", description="Ed25519 public keys (hex, comma separated) that modules must be signed by"
    )
    trusted_keys_file: Path | None = Field(
        None, description="file with such keys, one a line; read before each install"
    )
    master_key_file: Path | None = Field(
        None,
        description="file with the key (64 hexadecimal digits) that encrypts device keys; none: made in the state folder",
    )
    coap_require_dtls: bool = Field(False, description="serve only devices that come through a DTLS front")
    board_catalogue: Path | None = Field(None, description="YAML file with boards beside the built-in ones")
    object_definitions: Path | None = Field(
        None, description="folder of OMA object definitions (*.xml) beside the built-in ones"
    )
    max_devices: int = Field(20_000, ge=1)
    max_image_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    concurrent_installs: int = Field(16, ge=1)
    install_poll_seconds: float = Field(0.25, gt=0, description="pause between looks at a device that installs")
    install_stuck_seconds: float = Field(120.0, gt=0, description="no progress for so long: start the transfer again")
    install_offline_seconds: float = Field(86_400.0, gt=0, description="how long an install waits for its device")
    install_registry_seconds: float = Field(600.0, gt=0, description="how long an install waits for the registry")
    coap_ack_timeout_seconds: float = Field(2.0, gt=0, description="ACK_TIMEOUT of RFC 7252")
    coap_max_retransmit: int = Field(4, ge=0, description="MAX_RETRANSMIT of RFC 7252")

    @field_validator("coap_listen", "bootstrap_listen")
    @classmethod
    def _host_and_port(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "bootstrap_listen":
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError("must be host:port, such as 127.0.0.1:5683")
        return value

    def bridge(self) -> BridgeSettings:
        """The same for the bridge's parts."""
        host, _, port = self.coap_listen.rpartition(":")
        return BridgeSettings(
            coap=CoapSettings(
                host=host.strip("[]"),
                port=int(port),
                allow_plain_coap=self.coap_allow_plain,
                public_address=self.coap_public_address,
                datagrams_per_second=self.coap_datagrams_per_second,
            ),
            link=LinkSettings(ack_timeout_s=self.coap_ack_timeout_seconds, max_retransmit=self.coap_max_retransmit),
            install=InstallSettings(
                concurrency=self.concurrent_installs,
                poll_s=self.install_poll_seconds,
                offline_s=self.install_offline_seconds,
                registry_s=self.install_registry_seconds,
                stuck_s=self.install_stuck_seconds,
                max_image_bytes=self.max_image_bytes,
            ),
            bootstrap=self._bootstrap(),
            account=Account(self.bootstrap_server_uri, lifetime_s=self.bootstrap_lifetime_seconds),
            max_devices=self.max_devices,
            lease_s=self.lease_seconds,
        )

    def _bootstrap(self) -> BootstrapSettings | None:
        if not self.bootstrap_listen:
            return None
        host, _, port = self.bootstrap_listen.rpartition(":")
        return BootstrapSettings(
            CoapSettings(host=host.strip("[]"), port=int(port), allow_plain_coap=self.coap_allow_plain)
        )

    def resolve_master_key(self) -> bytes:
        """The master key of device keys; made in the state folder where no file is set."""
        if self.master_key_file is not None:
            return master_key(self.master_key_file, make=False)
        return master_key(self.state_dir / "device-keys.master", make=True)

    def resolve_library(self) -> ObjectLibrary:
        """Object definitions; ARGUMENT_INVALID names the file that can't be read."""
        if self.object_definitions is None:
            return ObjectLibrary()
        try:
            return ObjectLibrary.of_folder(self.object_definitions)
        except (CodecError, OSError) as error:
            raise BridgeError(Reason.ARGUMENT_INVALID, str(error), field="object_definitions") from error

    def resolve_database_url(self) -> str:
        """The URL, or that of a SQLite file in the state folder, which is made."""
        if self.database_url:
            return self.database_url
        self.state_dir.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.state_dir / 'bridge.db'}"
