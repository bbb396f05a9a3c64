"""KServe's Python model server with one ONNX model: kserve_peer.py MODEL HTTP_PORT GRPC_PORT. Runs in KServe's environment."""

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Onnx(Model):
    def __init__(self, file: str) -> None:
        super().__init__("m")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):  # their signature
        given = {item.name: item.as_numpy() for item in payload.inputs}
        (value,) = self._session.run(["y"], given)
        output = InferOutput("y", list(value.shape), "FP32")
        output.set_data_from_numpy(value, binary_data=True)
        assert isinstance(payload, InferRequest)
        return InferResponse(payload.id or "none", "m", [output])  # its own REST door takes no answer without an id


if __name__ == "__main__":
    file, http, grpc = sys.argv[1:]
    ModelServer(http_port=int(http), grpc_port=int(grpc), workers=1, enable_docs_url=False, access_log_format=None).start([Onnx(file)])
