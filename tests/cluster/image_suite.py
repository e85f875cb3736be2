"""Run inside of new mount, network and process namespaces: the suite from its images, as a cluster would run them.

Every root is read-only, every process is user 10001 with a /tmp of its own, and there is no network but loopback. Prints one
line of JSON. Usage: `image_suite.py NAME=ROOT ...`, roots being the images' mounted file systems.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_client import AsyncClient

PYTHON = "/opt/tinymlaas/bin/python"
USER = 10001
SECONDS = 240.0
PORTS = {"registry": 7001, "lwm2m-bridge": 7004, "compiler-tflm": 7100, "gateway": 7000}
MODULES = {
    "registry": "tinymlaas_registry",
    "gateway": "tinymlaas_gateway",
    "lwm2m-bridge": "tinymlaas_lwm2m_bridge",
    "compiler-tflm": "tinymlaas_compiler_tflm",
}


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdout=sys.stderr)


def seal(root: Path) -> None:
    """Make a root read-only, with /tmp, /proc and the few devices that a container has."""
    run("mount", "--bind", str(root), str(root))
    run("mount", "-t", "tmpfs", "-o", f"uid={USER},mode=0700", "tmp", str(root / "tmp"))
    run("mount", "-t", "proc", "proc", str(root / "proc"))
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "dev", str(root / "dev"))
    for device in ("null", "zero", "urandom"):
        (root / "dev" / device).touch()
        run("mount", "--bind", f"/dev/{device}", str(root / "dev" / device))
    run("mount", "-o", "remount,bind,ro", str(root))


def start(name: str, root: Path, settings: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start an image's program in its root as user 10001."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", **settings}
    command = ["/usr/sbin/chroot", f"--userspec={USER}:{USER}", str(root), PYTHON, "-m", *arguments]
    return subprocess.Popen(command, env=environment, stdout=sys.stderr, stderr=sys.stderr)


async def told(token: str) -> dict[str, object]:
    """What the gateway knows, once the plugin is ready and the board is registered, where they were started."""
    named = {argument.partition("=")[0] for argument in sys.argv[1:]}
    async with asyncio.timeout(SECONDS), AsyncClient(f"127.0.0.1:{PORTS['gateway']}", token=token) as client:
        while True:
            try:
                plugins = {
                    each.info.name: plugins_pb2.Plugin.State.Name(each.state) for each in await client.list_plugins()
                }
                devices = [each.name for each in await client.list_devices()]
                ready = "STATE_READY" in plugins.values() or "compiler-tflm" not in named
                if ready and (devices or "board" not in named):
                    return {"plugins": plugins, "devices": devices}
            except Exception as error:
                print(f"not yet: {error}", file=sys.stderr)
            await asyncio.sleep(0.5)


def main() -> None:
    """Start what was named, in order, and tell what the gateway knows."""
    roots = {name: Path(root) for name, _, root in (argument.partition("=") for argument in sys.argv[1:])}
    run("ip", "link", "set", "lo", "up")
    token, key = secrets.token_hex(16), secrets.token_hex(32)
    processes = []
    for root in roots.values():
        seal(root)
    for name, port in PORTS.items():
        settings = {
            "TINYMLAAS_LISTEN": f"127.0.0.1:{port}",
            "TINYMLAAS_TOKEN": token,
            "TINYMLAAS_STATE_DIR": "/tmp/state",
            "TINYMLAAS_REGISTRY_ADDRESS": f"127.0.0.1:{PORTS['registry']}",
            "TINYMLAAS_BRIDGES": json.dumps([f"127.0.0.1:{PORTS['lwm2m-bridge']}"]),
            "TINYMLAAS_PLUGINS": json.dumps([f"127.0.0.1:{PORTS['compiler-tflm']}"]),
            "TINYMLAAS_TRUSTED_KEYS": key,
        }
        if name in roots:
            processes.append(start(name, roots[name], settings, MODULES[name]))
    if "board" in roots:
        caches = {"TINYMLAAS_CACHE_DIR": "/opt/tinymlaas/cache", "TINYMLAAS_DEVICE_SOURCES": "/opt/tinymlaas/device"}
        board = ["tinymlaas_device", "--board", "node-m4f", "--name", "board-1", "--state", "/tmp/flash"]
        processes.append(start("board", roots["board"], caches, *board))
    try:
        print(json.dumps(asyncio.run(told(token))))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


if __name__ == "__main__":
    assert os.getpid() < 100, "run this in namespaces of its own"
    main()
