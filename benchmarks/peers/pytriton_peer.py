"""PyTriton with one ONNX model: pytriton_peer.py MODEL HTTP_PORT GRPC_PORT. Runs in PyTriton's environment."""

import sys

import numpy as np
import onnxruntime
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main(file: str, http: int, grpc: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()

    def infer(requests):  # their signature
        return [{"y": session.run(["y"], {"x": request.data["x"]})[0]} for request in requests]

    def shape(sizes):
        return tuple(size if isinstance(size, int) else -1 for size in sizes)

    settings = TritonConfig(http_port=http, grpc_port=grpc, allow_metrics=False, http_address="127.0.0.1", grpc_address="127.0.0.1")
    with Triton(config=settings) as triton:
        inputs = [Tensor(name="x", dtype=np.float32, shape=shape(given.shape))]
        outputs = [Tensor(name="y", dtype=np.float32, shape=shape(made.shape))]
        triton.bind("m", infer, inputs=inputs, outputs=outputs, config=ModelConfig(batching=False), strict=False)
        triton.serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
