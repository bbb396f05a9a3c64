"""A device with a camera: finds the face in a photograph, and asks a model how the person feels.

    python examples/emotion/device.py --url http://127.0.0.1:8500/v2/models/emotion/infer
    python examples/emotion/device.py --url https://ROOT:8443/…/applications/emotion/proxy/v2/models/emotion/infer \\
        --ca ca.crt --token-file token

It knows nothing of Banyan: it speaks the Open Inference Protocol v2 over HTTP, with the tensor as binary data, and would get the same
answer from any server of that protocol. ``--loop`` asks all the time and counts what fails; it never tries again in secret.

Exit codes: 0 answered (loop: no failure), 1 an answer that is not sure or a failed request, 2 wrong usage, 3 no face found.
"""

import argparse
import contextlib
import http.client
import json
import signal
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SIDE = 64  # pixels of the model's input
PHOTOGRAPH = Path(__file__).with_name("astronaut.png")
Image = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]
RECENT = 10_000  # durations kept for the percentiles


class NoFaceError(Exception):
    pass


# --- the photograph ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """In pixels of the photograph."""

    row: int
    column: int
    height: int
    width: int


def find_face(photograph: Image) -> Box:
    """The largest face. Local binary patterns, as scikit-image ships them; `NoFaceError` when there is none."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    detector = Cascade(lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]
    found = detector.detect_multi_scale(img=photograph, scale_factor=1.2, step_ratio=1, min_size=(60, 60), max_size=(200, 200))
    if not found:
        raise NoFaceError("no face of 60 to 200 pixels was found in the photograph")
    largest = max(found, key=lambda face: (face["width"] * face["height"], -face["r"], -face["c"]))
    return Box(int(largest["r"]), int(largest["c"]), int(largest["height"]), int(largest["width"]))


def preprocess(photograph: Image, box: Box) -> Tensor:
    """1, 64, 64, 1 in [-1, 1]. Elementwise arithmetic only, so every machine gets the same bits (golden values in the tests)."""
    face = photograph[box.row : box.row + box.height, box.column : box.column + box.width].astype(np.float64)
    grey = np.rint(face[..., 0] * 0.299 + face[..., 1] * 0.587 + face[..., 2] * 0.114)
    scaled = _resize(grey, SIDE)
    return ((scaled / 255.0 - 0.5) * 2.0).astype(np.float32).reshape(1, SIDE, SIDE, 1)


def _resize(image: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """Bilinear, pixel centres at halves, edges repeated: what OpenCV's INTER_LINEAR does, which the model was trained with."""

    def positions(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        centre = np.clip((np.arange(side) + 0.5) * (size / side) - 0.5, 0, size - 1)
        before = np.minimum(centre.astype(np.intp), max(size - 2, 0))
        return before, centre - before

    rows, down = positions(image.shape[0])
    columns, across = positions(image.shape[1])
    between = image[rows] * (1 - down)[:, None] + image[np.minimum(rows + 1, image.shape[0] - 1)] * down[:, None]
    right = between[:, np.minimum(columns + 1, image.shape[1] - 1)]
    scaled: npt.NDArray[np.float64] = between[:, columns] * (1 - across) + right * across
    return scaled


# --- the question ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    label: str
    confidence: float
    version: str
    route: str  # the hops that the request took, as Banyan tells; "" when it was asked directly
    milliseconds: float

    def document(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "confidence": round(self.confidence, 4),
            "version": self.version,
            "route": self.route,
            "milliseconds": round(self.milliseconds, 2),
        }


class RefusedError(Exception):
    """The server answered, but not with an inference."""


@dataclass
class Server:
    """Where to ask, and as whom. One per thread; keeps its connection unless ``fresh``."""

    url: str
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 10.0
    fresh: bool = False
    _connection: http.client.HTTPConnection | None = None

    def ask(self, tensor: Tensor) -> Answer:
        """Raises OSError, http.client.HTTPException or `RefusedError`; the next question begins with a new connection then."""
        body, headers = encode(tensor)
        started = time.perf_counter()
        try:
            connection = self._connection = self._connection or self._connect()
            connection.request("POST", urlsplit(self.url).path, body, {**self.headers, **headers})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        milliseconds = (time.perf_counter() - started) * 1000
        if self.fresh:
            self.close()
        if response.status != http.client.OK:
            raise RefusedError(f"HTTP {response.status}: {content[:300].decode(errors='replace')}")
        label, confidence, version = decode(content, response.headers.get("Inference-Header-Content-Length"))
        return Answer(label, confidence, version, response.headers.get("Banyan-Route", ""), milliseconds)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return _SecureInOnePiece(parts.hostname or "", parts.port, timeout=self.timeout, context=self.tls)
        return _InOnePiece(parts.hostname or "", parts.port, timeout=self.timeout)


class _InOnePiece(http.client.HTTPConnection):
    """Head and body leave together: each piece costs a small device about as much as preparing the picture does."""

    _pieces: list[bytes]

    def request(self, *arguments: Any, **more: Any) -> None:
        self._pieces = []
        super().request(*arguments, **more)
        super().send(b"".join(self._pieces))

    def send(self, data: Any) -> None:
        self._pieces.append(data)


class _SecureInOnePiece(_InOnePiece, http.client.HTTPSConnection):
    pass


def encode(tensor: Tensor) -> tuple[bytes, dict[str, str]]:
    """An inference request with the tensor as binary data behind the JSON."""
    raw = tensor.astype("<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [{"name": "input", "shape": list(tensor.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + raw, headers


def decode(content: bytes, head_length: str | None) -> tuple[str, float, str]:
    """Label, confidence and model version out of an answer, binary or JSON."""
    length = int(head_length) if head_length else len(content)
    try:
        document = json.loads(content[:length])
        output = document["outputs"][0]
        values = np.frombuffer(content[length:], "<f4") if head_length else np.asarray(output["data"], np.float32)
        best = int(np.argmax(values))
        return LABELS[best], float(values[best]), str(document.get("model_version", ""))
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"the answer is not an inference response: {error}") from error


# --- asking all the time -----------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What a loop has seen so far; shared by its threads."""

    requests: int = 0
    failures: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)  # the first few
    milliseconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def good(self, answer: Answer) -> None:
        with self.lock:
            self.requests += 1
            self.versions[answer.version] += 1
            self.routes[answer.route] += 1
            self.milliseconds.append(answer.milliseconds)

    def bad(self, reason: str) -> None:
        with self.lock:
            self.requests += 1
            self.failures += 1
            if len(self.errors) < 10:
                self.errors.append(reason)

    def document(self) -> dict[str, Any]:
        with self.lock:
            ordered = sorted(self.milliseconds)
            at = [ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else None for part in (0.5, 0.99)]
            return {
                "requests": self.requests,
                "failures": self.failures,
                "versions": dict(self.versions),
                "routes": dict(self.routes),
                "errors": list(self.errors),
                "p50_ms": at[0] and round(at[0], 2),
                "p99_ms": at[1] and round(at[1], 2),
            }


def keep_asking(server: Server, tensor: Tensor, tally: Tally, stop: threading.Event, options: argparse.Namespace) -> None:
    while not stop.is_set():
        try:
            answer = server.ask(tensor)
        except (OSError, http.client.HTTPException, RefusedError) as error:
            tally.bad(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
        else:
            if answer.confidence >= options.minimum:
                tally.good(answer)
            else:
                tally.bad(f"{time.strftime('%H:%M:%S')} {answer.label} {answer.confidence:.3f} is not sure enough")
        stop.wait(options.interval)
    server.close()


def loop(make: Callable[[bool], Server], tensor: Tensor, options: argparse.Namespace) -> int:
    """Until SIGINT, SIGTERM or ``--seconds``. Prints the tally now and then, and at the end."""
    stop, tally = threading.Event(), Tally()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    modes = {"keep-alive": (False,), "new": (True,), "both": (False, True)}[options.connections]
    threads = [threading.Thread(target=keep_asking, args=(make(fresh), tensor, tally, stop, options)) for fresh in modes]
    for thread in threads:
        thread.start()
    end = time.monotonic() + options.seconds if options.seconds else None
    while not stop.wait(options.report if end is None else max(min(options.report, end - time.monotonic()), 0)):
        if end is not None and time.monotonic() >= end:
            break
        report(tally, options.json)
    stop.set()
    for thread in threads:
        thread.join()
    report(tally, options.json)
    return 1 if tally.failures else 0


def report(tally: Tally, as_json: bool) -> None:
    seen = tally.document()
    if as_json:
        line = json.dumps(seen)
    else:
        versions = ", ".join(f"version {version}: {count}" for version, count in seen["versions"].items()) or "no answer yet"
        line = f"{seen['requests']} requests, {seen['failures']} failed ({versions}), p50 {seen['p50_ms']} ms, p99 {seen['p99_ms']} ms"
    print(line, flush=True)


# --- command line ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from skimage.io import imread

    try:
        photograph = np.ascontiguousarray(imread(options.photo)[..., :3])
        box = find_face(photograph)
    except NoFaceError as error:
        print(f"error: {options.photo}: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"error: {options.photo}: {error}", file=sys.stderr)
        return 2
    tensor = preprocess(photograph, box)
    headers, tls = _credentials(options)

    def make(fresh: bool) -> Server:
        return Server(options.url, tls, headers, options.timeout, fresh)

    if options.loop:
        return loop(make, tensor, options)
    if not options.json:
        print(f"face     {box.width}×{box.height} at row {box.row}, column {box.column} of {options.photo.name}")
    with contextlib.closing(make(options.connections == "new")) as server:
        return max(_ask_once(server, tensor, options) for _ in range(options.repeat))


def _ask_once(server: Server, tensor: Tensor, options: argparse.Namespace) -> int:
    try:
        answer = server.ask(tensor)
    except (OSError, http.client.HTTPException, RefusedError) as error:
        print(f"error: {options.url}: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(answer.document()), flush=True)
    else:
        print(f"answer   {answer.label}, confidence {answer.confidence:.3f}, model version {answer.version or 'not told'}")
        print(f"route    {answer.route or 'direct'}")
        print(f"took     {answer.milliseconds:.1f} ms", flush=True)
    return 0 if answer.confidence >= options.minimum else 1


def _credentials(options: argparse.Namespace) -> tuple[dict[str, str], ssl.SSLContext | None]:
    headers = {"User-Agent": "banyan-example-device"}
    if options.token_file:
        headers["Authorization"] = f"Bearer {options.token_file.read_text().strip()}"
    if not options.url.startswith("https:"):
        return headers, None
    tls = ssl.create_default_context(cafile=options.ca)
    if options.cert:
        tls.load_cert_chain(options.cert, options.key)
    return headers, tls


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Find the face in a photograph and ask a model how the person feels.")
    add = parser.add_argument
    add("--url", required=True, help="…/v2/models/emotion/infer, at an edge's port or through a controller's application proxy")
    add("--photo", type=Path, default=PHOTOGRAPH, help="a photograph (default: Eileen Collins, NASA)")
    add("--ca", help="PEM file of the CA that the server must have")
    add("--cert", help="PEM file of a client certificate")
    add("--key", help="PEM file of its key, unless it is in the same file")
    add("--token-file", type=Path, help="file with a bearer token")
    add("--minimum", type=float, default=0.9, help="least confidence of a good answer (default 0.9)")
    add("--timeout", type=float, default=10.0, help="seconds (default 10)")
    add("--json", action="store_true", help="one JSON object per line")
    add("--repeat", type=int, default=1, help="ask so many times")
    add("--connections", choices=("keep-alive", "new", "both"), default="keep-alive", help="one connection, a new one each time, or both")
    add("--loop", action="store_true", help="ask all the time, count requests and failures, until Ctrl-C or SIGTERM")
    add("--interval", type=float, default=0.02, help="loop: seconds between questions (default 0.02)")
    add("--seconds", type=float, default=0.0, help="loop: end after so many seconds")
    add("--report", type=float, default=1.0, help="loop: seconds between reports (default 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
