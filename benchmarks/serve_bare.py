"""onnxruntime alone, the limit of everything that serves: `python -m benchmarks.serve_bare rate|once|idle MODEL NAME [SECONDS]`.

`rate` prints runs a second of one thread; `once` answers once and prints a line; `idle` does, and then waits to be looked at.
"""

import sys
import time


def main(what: str, file: str, name: str, seconds: float) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    from benchmarks import serve_models

    given = {"x": serve_models.request(name, 1)}
    session.run(["y"], given)
    if what != "rate":
        print("answered", flush=True)
        if what == "idle":
            sys.stdin.readline()
        return
    for _ in range(20):
        session.run(["y"], given)
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for _ in range(4):
            session.run(["y"], given)
        count += 4
    print(count / spent, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
