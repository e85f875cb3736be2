"""What `helm test` runs: the gateway answers with the token, refuses without it, and knows the suite's plugins as ready."""

from __future__ import annotations

import os
import sys
import time

import grpc

from tinymlaas.registry.v1 import plugins_pb2, plugins_pb2_grpc

SECONDS = 120


def states(stub: plugins_pb2_grpc.PluginsStub, token: str) -> dict[str, str]:
    """States of the plugins by the end of their names, such as compiler-tvm."""
    answer = stub.ListPlugins(
        plugins_pb2.ListPluginsRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=10
    )
    return {each.info.name.rpartition(".")[2]: plugins_pb2.Plugin.State.Name(each.state) for each in answer.plugins}


def main() -> int:
    """0 when everything is as it should be."""
    stub = plugins_pb2_grpc.PluginsStub(grpc.insecure_channel(os.environ["GATEWAY"]))
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
