#!/bin/sh
# Make shimv1/ from the contract. Needs Go and a protoc; `make setup` brings one (grpc_tools) into .venv.
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
export CGO_ENABLED=0 GOFLAGS=-trimpath
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
GOBIN=$tools go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.5
GOBIN=$tools go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
module=banyan.dev/examples/shim-go
PATH=$tools:$PATH "$root/.venv/bin/python" -m grpc_tools.protoc --proto_path="$root/proto" \
    --go_out=. --go_opt="module=$module,Mbanyan/shim/v1/shim.proto=$module/shimv1" \
    --go-grpc_out=. --go-grpc_opt="module=$module,Mbanyan/shim/v1/shim.proto=$module/shimv1" \
    banyan/shim/v1/shim.proto
