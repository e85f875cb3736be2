"""Print a software bill of materials (CycloneDX 1.6, JSON) of the image that this runs in: Python, its packages and Debian's.

Usage: `python sbom.py NAME [ROOT]`, ROOT being the folder that becomes the image's root where it is another one than here. The same
packages give the same bytes: no time and no serial number is written, both of which the standard leaves optional
(https://cyclonedx.org/docs/1.6/json/).
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

DPKG_STATUS = "var/lib/dpkg/status"
Component = dict[str, object]


def python_packages() -> Iterator[Component]:
    """The packages that this interpreter can import, with the licence that they state."""
    for package in metadata.distributions():
        name, version = package.metadata["Name"], package.version
        component = _component(name, version, f"pkg:pypi/{name.lower().replace('_', '-')}@{version}")
        licence = package.metadata.get("License-Expression")
        if licence:
            component["licenses"] = [{"expression": licence}]
        yield component


def debian_packages(status: str) -> Iterator[Component]:
    """The packages that dpkg's status file tells as installed."""
    for entry in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            yield _component(name, version, f"pkg:deb/debian/{name}@{version}?arch={fields.get('Architecture', 'all')}")


def _component(name: str, version: str, purl: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(name: str, components: list[Component]) -> dict[str, object]:
    """The document: each component once, in the order of its package URL."""
    unique = {str(component["bom-ref"]): component for component in components}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name}},
        "components": [unique[key] for key in sorted(unique)],
    }


def main() -> None:
    """Command line."""
    installed = Path(*(sys.argv[2:] or "/")) / DPKG_STATUS
    status = installed.read_text(encoding="utf-8") if installed.exists() else ""
    version = platform.python_version()
    python = _component("python", version, f"pkg:generic/python@{version}")
    document = bill(sys.argv[1], [python, *python_packages(), *debian_packages(status)])
    json.dump(document, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
