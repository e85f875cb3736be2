"""Open DTLS sessions: which identity has proven itself behind an address, and what it may register there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import BridgeError, Reason


@dataclass(frozen=True)
class Session:
    """One session of a front. `address` is that of the socket that its datagrams come from, as a CoAP URI without path."""

    id: str
    identity: str
    endpoint: str
    address: str
    peer: str = ""


class SessionTable:
    """The sessions that the fronts have told of, and the decision whether a device may speak from an address."""

    def __init__(self, has_key: Callable[[str], bool], *, required: bool = False) -> None:
        self._has_key = has_key
        self._required = required
        self._by_address: dict[str, Session] = {}
        self._by_id: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def opened(self, session: Session) -> None:
        """Take a session; one that was told of at the same address before has ended."""
        before = self._by_address.get(session.address)
        if before is not None:
            self.closed(before.id)
        self.closed(session.id)
        self._by_id[session.id] = session
        self._by_address[session.address] = session

    def closed(self, session_id: str) -> None:
        """Forget a session. Repeatable."""
        session = self._by_id.pop(session_id, None)
        if session is not None:
            del self._by_address[session.address]

    def of_identity(self, identity: str) -> list[Session]:
        """Open sessions of an identity."""
        return [session for session in self._by_id.values() if session.identity == identity]

    def admit_source(self, address: str) -> None:
        """SESSION_REQUIRED where datagrams from `address` belong to no session and only sessions are served."""
        if self._required and address not in self._by_address:
            raise BridgeError(Reason.SESSION_REQUIRED, "only CoAP over DTLS is served here", address=address)

    def admit(self, endpoint: str, address: str) -> None:
        """Whether the device at `address` (a CoAP URI without path) may be `endpoint`.

        IDENTITY_MISMATCH for a session with another endpoint's key, SESSION_REQUIRED for plain CoAP where a session is needed:
        because all devices need one, or because the endpoint has a key, so that nobody takes its place without it.
        """
        session = self._by_address.get(address)
        if session is None:
            self.admit_source(address)
            if self._has_key(endpoint):
                raise BridgeError(Reason.SESSION_REQUIRED, f"{endpoint} has a key and must use it", device=endpoint)
        elif session.endpoint != endpoint:
            raise BridgeError(
                Reason.IDENTITY_MISMATCH,
                f"identity {session.identity!r} may not be {endpoint}",
                device=endpoint,
                identity=session.identity,
            )
