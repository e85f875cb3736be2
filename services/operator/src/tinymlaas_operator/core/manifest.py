"""The Secret that the gateway mounts: a manifest of the registered plugins, and a token for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .objects import token_key

MANIFEST_KEY = "vendor.json"


@dataclass(frozen=True, slots=True)
class Registered:
    """A plugin that the gateway is told of: its resource, the name it gave itself, and its headless Service.

    `identity`: its name in its certificate, empty without mTLS.
    """

    resource: str
    plugin: str
    address: str
    identity: str = ""


def registered(data: Mapping[str, str]) -> dict[str, Registered]:
    """What a manifest lists, by resource; empty where there is none yet."""
    text = data.get(MANIFEST_KEY, "")
    entries = json.loads(text) if text else []
    return {
        entry["resource"]: Registered(
            entry["resource"], entry["plugin"], entry["service"], str(entry.get("identity", ""))
        )
        for entry in entries
    }


def content(
    data: Mapping[str, str],
    plugins: Mapping[str, Registered],
    resources: frozenset[str],
    make_token: Callable[[], str],
) -> dict[str, str]:
    """The Secret's new content: every resource keeps its token or gets one, tokens of resources that are gone go.

    A plugin has its token before it is registered, since its container does not start without.
    """
    made = {token_key(name): data.get(token_key(name)) or make_token() for name in sorted(resources)}
    entries = [
        {
            "service": plugins[name].address,
            "token_file": token_key(name),
            "resource": name,
            "plugin": plugins[name].plugin,
            **({"identity": plugins[name].identity} if plugins[name].identity else {}),
        }
        for name in sorted(plugins)
    ]
    return {**made, MANIFEST_KEY: json.dumps(entries, indent=1) + "\n"}
