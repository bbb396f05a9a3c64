"""MLServer with one ONNX model: mlserver_peer.py MODEL HTTP_PORT GRPC_PORT. Runs in MLServer's environment."""

import asyncio
import os
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings, types
from mlserver.codecs import NumpyCodec


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        given = {item.name: NumpyCodec.decode_input(item) for item in payload.inputs}
        (value,) = self._session.run(["y"], given)
        return types.InferenceResponse(model_name="m", outputs=[NumpyCodec.encode_output("y", value)])


async def main(file: str, http: int, grpc: int) -> None:
    os.environ["PEER_MODEL"] = file
    # No workers of its own: one process, as for the others; its inference pool only adds a hop here.
    server = MLServer(Settings(host="127.0.0.1", http_port=http, grpc_port=grpc, parallel_workers=0, debug=False, metrics_endpoint=None))
    await server.start([ModelSettings(name="m", implementation=Onnx)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
