"""The inference worker: one ONNX model, served over the Open Inference Protocol v2, in a process of its own.

    python -m edge_ai.serve --name N --version V --model-folder F [--listen HOST:PORT | LISTEN_FDS] [--control unix:PATH]

How a request walks through the modules (arrows are imports; nothing imports back):

    __main__ ─> worker ─┬─> http      bytes ⇄ Request, Response (asyncio.Protocol, httptools); knows no inference
                        ├─> rest      Request → what to do → Response; the JSON and binary codec is in `rest_codec`, streams of lines are
                        │             `rest_stream` and, below it, `http_stream`
                        ├─> grpc_door the same over gRPC, imported when the first HTTP/2 client comes: `http2` (pure), `grpc_wire`,
                        │             `grpc_service`, `grpc_codec`
                        ├─> repository which models serve; verified, warmed up, then swapped in one assignment
                        ├─> inference at once, or through the model's `lane`: priorities, deadlines, `batches`, a few threads
                        └─> metrics   Prometheus counters and histograms
    tensors   names, datatypes and shapes of the protocol, and the checks of a request against a model (pure)
    model     what serves, whatever runs it: `engine` (the only importer of onnxruntime) or a `pipeline`

The HTTP hot path is replaceable: anything that turns bytes into `http.Request` and calls an `http.Application` will do.
"""
