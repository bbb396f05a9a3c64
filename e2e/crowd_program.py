"""Many who open a connection and say nothing. Arguments: host, port, how many, source network (127.N), seconds to take for it.

Prints ``standing N`` when all have connected, then ``dropped N`` when the other side has ended them all, or the patience is over.
"""

import resource
import selectors
import socket
import sys
import time

PATIENCE = 30.0


def main(host: str, port: int, count: int, network: str, seconds: float) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 64), hard))
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    dropped = 0
    for number in range(count):
        connection = socket.socket()
        connection.bind((f"{network}.{number // 250}.{number % 250 + 1}", 0))
        connection.connect((host, port))
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        dropped += reap(selector, 0.0)
        time.sleep(max(0.0, began + number * seconds / count - time.monotonic()))
    print("standing", count, flush=True)
    while dropped < count and time.monotonic() < began + PATIENCE:
        dropped += reap(selector, 1.0)
    print("dropped", dropped, flush=True)


def reap(selector: selectors.BaseSelector, timeout: float) -> int:
    """Forget the connections that have ended; how many."""
    ended = 0
    for key, _ in selector.select(timeout):
        connection = key.fileobj
        assert isinstance(connection, socket.socket)
        try:
            over = not connection.recv(4096)
        except ConnectionError:
            over = True
        if over:
            selector.unregister(connection)
            connection.close()
            ended += 1
    return ended


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
