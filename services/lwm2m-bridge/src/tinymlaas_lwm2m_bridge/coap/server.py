"""What devices talk to: the registration interface `/rd` and module images under `/p/{sha256}`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from aiocoap import Code, Message, resource
from aiocoap.error import BadRequest, NotFound, RequestEntityTooLarge
from aiocoap.optiontypes import BlockOption

from tinymlaas_lwm2m import Format
from tinymlaas_lwm2m.linkformat import MAX_BYTES as MAX_LINK_BYTES

from ..core.directory import Directory
from ..core.errors import BridgeError, Reason
from ..core.registration import Registration, parse_objects, parse_register, parse_update

_SZX = 6
Remember = Callable[[str, str, Any], None]
"""(endpoint, address, aiocoap's address) → keep for later requests to the device."""


def refusal(error: BridgeError) -> Message:
    """The answer to a device whose registration or bootstrap is refused."""
    codes = {
        Reason.DEVICE_UNKNOWN: Code.NOT_FOUND,
        Reason.VERSION_UNSUPPORTED: Code.PRECONDITION_FAILED,
        Reason.LIMIT_EXCEEDED: Code.SERVICE_UNAVAILABLE,
        Reason.SESSION_REQUIRED: Code.FORBIDDEN,
        Reason.IDENTITY_MISMATCH: Code.FORBIDDEN,
    }
    code = codes.get(Reason(error.reason), Code.BAD_REQUEST)
    return Message(code=code, payload=error.detail.encode()[:200])


class _Bounded(resource.Resource):  # type: ignore[misc]  # aiocoap is not typed
    """A resource whose request body is bounded before aiocoap collects its blocks."""

    async def render_to_pipe(self, pipe: Any) -> None:
        block = pipe.request.opt.block1
        end = (block.start if block else 0) + len(pipe.request.payload)
        if end > MAX_LINK_BYTES or (pipe.request.opt.size1 or 0) > MAX_LINK_BYTES:
            raise RequestEntityTooLarge(f"at most {MAX_LINK_BYTES} bytes")
        await super().render_to_pipe(pipe)


class RegisterResource(_Bounded):
    """POST /rd: Register."""

    def __init__(self, directory: Directory, remember: Remember) -> None:
        super().__init__()
        self._directory = directory
        self._remember = remember

    async def render_post(self, request: Message) -> Message:
        """Take the device in; 2.01 with the location of its registration."""
        try:
            _link_format_only(request)
            query = parse_register(request.opt.uri_query)
            objects = parse_objects(request.payload)
            address, local = _addresses(request)
            registration = self._directory.register(query, objects, address, local)
            self._remember(query.endpoint, address, request.remote)
        except BridgeError as error:
            return refusal(error)
        answer = Message(code=Code.CREATED)
        answer.opt.location_path = ("rd", registration.id)
        return answer


class RegistrationResource(_Bounded, resource.PathCapable):  # type: ignore[misc]
    """POST /rd/{id}: Update. DELETE /rd/{id}: De-register."""

    def __init__(self, directory: Directory, remember: Remember) -> None:
        super().__init__()
        self._directory = directory
        self._remember = remember

    async def render_post(self, request: Message) -> Message:
        """Extend the registration; 4.04 makes the device register anew."""
        try:
            query = parse_update(request.opt.uri_query)
            objects = None
            if request.payload:
                _link_format_only(request)
                objects = parse_objects(request.payload)
            address, local = _addresses(request)
            registration = self._directory.update(_one(request), query, objects, address, local)
            self._remember(registration.endpoint, address, request.remote)
        except BridgeError as error:
            return refusal(error)
        return Message(code=Code.CHANGED)

    async def render_delete(self, request: Message) -> Message:
        """Forget the device."""
        try:
            self._directory.deregister(_one(request), _addresses(request)[0])
        except BridgeError as error:
            return refusal(error)
        return Message(code=Code.DELETED)


def _one(request: Message) -> str:
    if len(request.opt.uri_path) != 1:
        raise BridgeError(Reason.DEVICE_UNKNOWN, "no such registration")
    return str(request.opt.uri_path[0])


def _link_format_only(request: Message) -> None:
    if request.opt.content_format not in (None, Format.LINK):
        raise BridgeError(Reason.REGISTRATION_INVALID, "the payload must be application/link-format", parameter="ct")


def _addresses(request: Message) -> tuple[str, str]:
    """The device's address and the local one that it used, as CoAP URIs without path."""
    return f"coap://{request.remote.hostinfo}", f"coap://{request.remote.hostinfo_local}"


class PackageResource(resource.Resource, resource.PathCapable):  # type: ignore[misc]  # aiocoap is not typed
    """GET /p/{sha256}: an image, stateless, any block at any time (RFC 7959), ETag = first 8 bytes of the digest.

    aiocoap's own block-wise server answers later blocks only from a cache of the first request, which a device that
    resumes elsewhere or after a reboot does not hit; so each block is cut here, from the request alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._images: dict[str, bytes] = {}
        self._offers: Counter[str] = Counter()
        self._public: str | None = None
        self.bytes_served: Counter[str] = Counter()

    def expect(self, digest: str) -> None:
        """Answer 5.03, not 4.04, for an image that will be offered; counts as an offer."""
        self._offers[digest] += 1

    def offer(self, digest: str, image: bytes) -> None:
        """Serve an image until it is withdrawn as often as it was offered and expected."""
        self._images[digest] = image
        self._offers[digest] += 1

    def withdraw(self, digest: str) -> None:
        """Take one offer back."""
        self._offers[digest] -= 1
        if self._offers[digest] <= 0:
            del self._offers[digest]
            self._images.pop(digest, None)

    def announce(self, address: str | None) -> None:
        """Address (`coap://host:port`) that devices reach this server at; None: the one each device registered at."""
        self._public = address

    def uri(self, digest: str, device: Registration) -> str:
        """Package URI for a device."""
        return f"{self._public or device.local_address}/p/{digest}"

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        """Never: see the class."""
        return False

    async def render_get(self, request: Message) -> Message:
        """One block of an image."""
        path = request.opt.uri_path
        image = self._images.get(path[0]) if len(path) == 1 else None
        if image is None and len(path) == 1 and path[0] in self._offers:
            # A device takes 4.04 as final, and asks again after 5.03 (DO-INST-017).
            return Message(code=Code.SERVICE_UNAVAILABLE, max_age=1)
        if image is None:
            raise NotFound
        etag = bytes.fromhex(path[0][:16])
        if etag in (request.opt.etags or ()):
            answer = Message(code=Code.VALID)
            answer.opt.etag = etag
            return answer
        asked = request.opt.block2
        szx = min(asked.size_exponent, _SZX) if asked else _SZX
        size = 1 << (szx + 4)
        # A block number counts in the size that was asked for, which may be larger than the one served (RFC 7959, 2.4).
        start = asked.start if asked else 0
        if start >= len(image) and start:
            raise BadRequest("block beyond the end")
        part = image[start : start + size]
        answer = Message(code=Code.CONTENT, payload=part)
        answer.opt.etag = etag
        answer.opt.content_format = Format.OPAQUE
        answer.opt.block2 = BlockOption.BlockwiseTuple(start // size, start + len(part) < len(image), szx)
        answer.opt.size2 = len(image)
        self.bytes_served[path[0]] += len(part)
        return answer


def build_site(directory: Directory, packages: PackageResource, remember: Remember) -> resource.Site:
    """The server's resources."""
    site = resource.Site()
    site.add_resource(["rd"], RegisterResource(directory, remember))
    site.add_resource(["rd"], RegistrationResource(directory, remember))
    site.add_resource(["p"], packages)
    return site
