#!/usr/bin/env bash
# Generates gen/ from protos/: run after a change of security.proto or of the access option that it uses.
set -euo pipefail
cd "$(dirname "$0")"
root=../..
python="$root/.venv/bin/python"
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
"$python" "$root/scripts/generate_contracts.py" --sources "$sources/protos"
mkdir -p "$sources/bin"
GOBIN="$sources/bin" go install google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
protos=(tinymlaas/bridge/v1/security.proto tinymlaas/type/v1/access.proto)
module=tinymlaas/dtls-front
packages="M${protos[0]}=$module/gen/bridgev1,M${protos[1]}=$module/gen/typev1"
includes=$("$python" -c "from importlib import resources; print(resources.files('grpc_tools') / '_proto')")
PATH="$sources/bin:$PATH" "$python" -m grpc_tools.protoc -I"$sources/protos" -I"$includes" \
  --go_out=. --go_opt="module=$module,$packages" --go-grpc_out=. --go-grpc_opt="module=$module,$packages" "${protos[@]}"
