"""Asks a worker with Triton's own gRPC client until a line comes on stdin; a tally per second on stdout. Not a test module: test_worker.py
runs it, in a process of its own.
"""

import json
import sys
import threading
import time
from typing import Any

import numpy as np
import tritonclient.grpc as module


def loop(address: str) -> None:
    client = module.InferenceServerClient(address)
    item = module.InferInput("x", [1, 4], "FP32")
    item.set_data_from_numpy(np.ones((1, 4), np.float32))
    tally: dict[str, Any] = {"answers": 0, "failures": [], "versions": []}
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("asking", flush=True)
    told = time.monotonic()
    while not stop.is_set():
        try:
            version = client.infer("m", [item]).get_response().model_version
        except module.InferenceServerException as error:
            tally["failures"].append(str(error))
        else:
            tally["answers"] += 1
            if version not in tally["versions"]:
                tally["versions"].append(version)
        if time.monotonic() > told + 1:
            told = time.monotonic()
            print(json.dumps(tally), flush=True)
    print(json.dumps(tally), flush=True)
    client.close()


if __name__ == "__main__":
    loop(sys.argv[1])
