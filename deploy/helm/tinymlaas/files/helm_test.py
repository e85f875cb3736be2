"""What `helm test` runs: the gateway answers with the token, refuses without it, and knows the suite's plugins as ready."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import grpc
from cryptography import x509

from tinymlaas.registry.v1 import plugins_pb2, plugins_pb2_grpc

SECONDS = 120


def channel() -> grpc.Channel:
    """To the gateway; with CERTIFICATE, a file, only to who shows that very certificate, whatever name it has."""
    path = os.environ.get("CERTIFICATE")
    if not path:
        return grpc.insecure_channel(os.environ["GATEWAY"])
    pem = Path(path).read_bytes()
    extensions = x509.load_pem_x509_certificate(pem).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    named = ("grpc.ssl_target_name_override", names[0].replace("*", "gateway", 1))
    return grpc.secure_channel(os.environ["GATEWAY"], grpc.ssl_channel_credentials(pem), [named])


def states(stub: plugins_pb2_grpc.PluginsStub, token: str) -> dict[str, str]:
    """States of the plugins by the end of their names, such as compiler-tvm."""
    answer = stub.ListPlugins(
        plugins_pb2.ListPluginsRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=10
    )
    return {each.info.name.rpartition(".")[2]: plugins_pb2.Plugin.State.Name(each.state) for each in answer.plugins}


def main() -> int:
    """0 when everything is as it should be."""
    stub = plugins_pb2_grpc.PluginsStub(channel())
    try:
        states(stub, "not the token")
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
    else:
        print("the gateway answers whoever asks")
        return 1
    wanted = set(os.environ["PLUGINS"].split())
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        told = states(stub, os.environ["TOKEN"])
        missing = {name for name in wanted if told.get(name) != "STATE_READY"}
        if not missing:
            print("ready:", " ".join(sorted(wanted)))
            return 0
        time.sleep(1)
    print("not ready:", " ".join(sorted(missing)), told)
    return 1


if __name__ == "__main__":
    sys.exit(main())
