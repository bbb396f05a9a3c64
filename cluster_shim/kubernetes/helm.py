"""Charts into objects: the archive unpacked safely, rendered by the helm binary, read back as documents.

helm is asked for its templates alone: it gets no cluster, no home, no plugins, no repositories and no network names, a bounded time,
memory and output. What `helm install` would do beyond applying objects is refused by name, unless the Application says that it be left
out: hooks, and templates that look up what is in the cluster. Whether one does is known by letting it try: helm is told to ask a server
at an address that takes no connections, so the first `lookup` that is reached fails, wherever it stands (values, too, may be templates).
Tests (`helm.sh/hook: test`) are no part of an installation and are always left out. A rendering is kept on disk, so that the same chart
with the same values stays the same objects over restarts, also where a template draws a random password.

    FOLDER/DIGEST.json     a rendering, by what it was asked for
    FOLDER/room-…          an unpacked chart while it is rendered; what a killed process left of one goes at the next start
"""

import asyncio
import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
import yaml

from cluster_controller import durable
from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import archive, names
from cluster_shim.kubernetes.apply import Facts

log = structlog.get_logger()

Object = dict[str, Any]

RENDER_SECONDS = 60.0
MAX_OUTPUT = 16 << 20
MAX_WORDS = 64 << 10
MAX_SAID = 600  # of them, in a status
MAX_MEMORY = 1 << 30  # bytes that helm may take
MAX_NODES = 500_000  # values of all documents together, with what YAML aliases repeat
MAX_DEPTH = 100
MAX_KEPT = 256  # renderings on disk; the least recently used go first
MAX_RELEASE = 53  # helm's own limit
AT_ONCE = 2
HOOK = "helm.sh/hook"
VALUES = "values.json"
HOME = "home"

ROOM = "room-"
NOWHERE = "https://127.0.0.1:0"  # no server can listen there, and asking goes nowhere

_LOOKED_UP = "error calling lookup"
_PLACE = re.compile(r"template: ([^\s:]+):\d+:\d+: executing")


def find_helm() -> str:
    """The binary that the extra `kubernetes` brings, else one that is installed."""
    beside = Path(sysconfig.get_path("scripts")) / "helm"
    found = str(beside) if beside.is_file() else shutil.which("helm")
    if not found:
        raise ShimError("there is no helm to render charts with; install banyan-edge[kubernetes], which brings it")
    return found


class Helm:
    """``folder``: where charts are unpacked and renderings kept; made if it is missing, readable by this user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()  # helm runs in another one
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._swept = False
        self._sweeping = threading.Lock()

    async def render(self, work: contract.Work, component: contract.Component, facts: Facts) -> list[Object]:
        """ShimError, with helm's own words, for a chart that makes nothing that can be applied."""
        chart = component.chart
        assert chart is not None
        release = names.object_name(work.name, component.name, work.uid, limit=MAX_RELEASE)
        asked = [chart.sha256, chart.values.decode("utf-8", "replace"), chart.ignore_hooks, release, facts.namespace, facts.version]
        kept = self._folder / f"{hashlib.sha256(msgspec.json.encode(asked)).hexdigest()}.json"
        found = await asyncio.to_thread(_read_kept, kept)
        if found is None:
            try:
                async with self._slots:
                    found = await self._render(chart, release, facts)
            except OSError as error:
                raise ShimError(f"the chart cannot be rendered: {error.strerror or error} (in {self._folder})") from None
            await asyncio.to_thread(_keep, kept, found)
        return found

    async def _render(self, chart: contract.Chart, release: str, facts: Facts) -> list[Object]:
        room = await asyncio.to_thread(self._make_room)
        try:
            top = await asyncio.to_thread(_unpack, chart, room)
            arguments = ["template", release, str(top), "--namespace", facts.namespace, "--include-crds", "--values", f"{room}/{VALUES}"]
            if facts.version:
                arguments += ["--kube-version", facts.version]
            if not chart.ignore_hooks:
                arguments += ["--dry-run=server"]  # the word for "lookups ask"
            output = await _run(find_helm(), arguments, room, top.name)
            documents = await asyncio.to_thread(read_documents, output, top.name)
        finally:
            await asyncio.to_thread(shutil.rmtree, room, ignore_errors=True)
        return list(without_hooks(documents, top.name, chart.ignore_hooks))

    def _make_room(self) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._sweeping:
            if not self._swept:
                for left in self._folder.glob(f"{ROOM}*"):
                    shutil.rmtree(left, ignore_errors=True)
                self._swept = True
        return Path(tempfile.mkdtemp(prefix=ROOM, dir=self._folder))


# --- before: the chart ---


def _unpack(chart: contract.Chart, room: Path) -> Path:
    """Also what helm finds beside it: its values, and a home."""
    source = Path(chart.path)
    copy = room / "chart.tgz"
    try:
        if source.stat().st_size > archive.MAX_PACKED:
            raise ShimError(f"the chart's archive has {source.stat().st_size:,} bytes; {archive.MAX_PACKED:,} are the most")
        data = source.read_bytes()
    except OSError as error:
        raise ShimError(f"the chart's archive is not there: {error}") from None
    if hashlib.sha256(data).hexdigest() != chart.sha256:
        raise ShimError(f"the chart's archive is not the one that was published: its digest is not {chart.sha256}")
    copy.write_bytes(data)
    (room / VALUES).write_bytes(chart.values or b"{}")
    (room / HOME).mkdir(mode=0o700)
    return archive.unpack(copy, room / "chart")


# --- helm ---


async def _run(helm: str, arguments: list[str], room: Path, chart: str) -> bytes:
    home = room / HOME
    environment = {
        "PATH": "/nonexistent",
        "HOME": str(home),
        "TMPDIR": str(home),
        "KUBECONFIG": "/dev/null",
        "HELM_KUBEAPISERVER": NOWHERE,
        "HELM_NO_PLUGINS": "1",
        "GOMAXPROCS": "1",
        "GOMEMLIMIT": str(MAX_MEMORY * 3 // 4),
    }
    for place in ("CACHE", "CONFIG", "DATA"):
        environment[f"HELM_{place}_HOME"] = str(home)
    try:
        process = await asyncio.create_subprocess_exec(
            helm,
            *arguments,
            cwd=home,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ShimError(f"{helm} cannot be started: {error.strerror or error}") from None
    try:
        with contextlib.suppress(ProcessLookupError):  # so quick that it has ended
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        async with asyncio.timeout(RENDER_SECONDS):
            output, words = await _read(process, chart)
    except TimeoutError:
        raise ShimError(f"chart {chart} is not rendered within {RENDER_SECONDS:g} s; it is not applied") from None
    finally:
        if process.returncode is None:
            await _end(process)
    if process.returncode:
        said = _words(words, room)
        if _LOOKED_UP in said:
            places = [place for place in _PLACE.findall(said) if place != "gotpl"]  # which is what helm calls a template in a value
            raise ShimError(
                f"chart {chart}: {places[-1] if places else 'it'} looks up objects of the cluster, which are not there;"
                " hooks: Ignore renders it without"
            )
        raise ShimError(f"chart {chart} does not render: {said[:MAX_SAID] or f'helm ended with {process.returncode}'}")
    return output


async def _read(process: asyncio.subprocess.Process, chart: str) -> tuple[bytes, bytes]:
    """What it prints until it has ended, and its complaints. ShimError as soon as either is too much."""
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.TaskGroup() as group:
            much = f"chart {chart} renders to more than {MAX_OUTPUT >> 20} MiB; it is not applied"
            output = group.create_task(_read_all(process.stdout, MAX_OUTPUT, much))
            much = f"chart {chart}: helm has more than {MAX_WORDS >> 10} KiB of complaints about it; it is not applied"
            words = group.create_task(_read_all(process.stderr, MAX_WORDS, much))
            group.create_task(process.wait())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return output.result(), words.result()


async def _read_all(stream: asyncio.StreamReader, limit: int, much: str) -> bytes:
    found = bytearray()
    while data := await stream.read(limit + 1 - len(found)):
        found += data
        if len(found) > limit:
            raise ShimError(much)
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and the loop has not heard of it yet
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):  # what stands in the pipes: unread, it would hide that they are closed
        while stream is not None and await stream.read(1 << 16):
            pass
    await process.wait()


def _words(words: bytes, room: Path) -> str:
    """What helm says went wrong, without our folder's name and its advice for a terminal."""
    text = words.decode("utf-8", "replace").replace(f"{room}/chart/", "").replace(str(room), "")
    lines = [line for line in text.splitlines() if line and "--debug" not in line and not line.startswith(("WARNING", "level="))]
    return " ".join(" ".join(lines).removeprefix("Error: ").split())


# --- after: the documents ---


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as helm and kubectl read it: no dates, no numbers to the base of sixty (`80:80` is text)."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [*_first.replace("\0", ""), ""])


def read_documents(output: bytes, chart: str) -> list[Object]:
    """The objects of what helm printed. ShimError for text that is none."""
    found: list[Object] = []
    nodes = [MAX_NODES]
    try:
        for document in yaml.load_all(output.decode(), _Loader):
            if document is None:
                continue
            if not isinstance(document, dict):
                raise ShimError(f"chart {chart} renders to something that is no object: {str(document)[:80]!r}")
            plain: Object = _plain(document, nodes, 0)
            items = plain.get("items") if str(plain.get("kind", "")).endswith("List") else [plain]
            found += [item for item in items or [] if isinstance(item, dict)]
    except yaml.YAMLError as error:
        raise ShimError(f"chart {chart} renders to what is no YAML: {' '.join(str(error).split())[:400]}") from None
    except UnicodeDecodeError:
        raise ShimError(f"chart {chart} renders to what is no UTF-8") from None
    except (RecursionError, OverflowError, ValueError) as error:
        raise ShimError(f"chart {chart} renders to what cannot be read: {error}") from None
    for item in found:
        if (
            not item.get("apiVersion")
            or not item.get("kind")
            or not isinstance(item.get("metadata"), dict)
            or not item["metadata"].get("name")
        ):
            raise ShimError(f"chart {chart} renders to an object that lacks apiVersion, kind or metadata.name: {str(item)[:120]}")
    return found


def _plain(value: Any, nodes: list[int], depth: int) -> Any:
    """As JSON has it; aliases written out, and counted."""
    nodes[0] -= 1
    if nodes[0] < 0 or depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_NODES:,} values, or {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {_text(key): _plain(inner, nodes, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, nodes, depth + 1) for inner in value]
    if isinstance(value, (str, int, float)) or value is None:
        return value
    raise ValueError(f"a value of type {type(value).__name__}")


def _text(key: object) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def without_hooks(documents: list[Object], chart: str, ignore: bool) -> Iterator[Object]:
    """What an installation applies. ShimError names the first hook, unless they are to be left out."""
    for item in documents:
        hooks = (item["metadata"].get("annotations") or {}).get(HOOK)
        if hooks is None:
            yield item
        elif not ignore and not {one.strip() for one in str(hooks).split(",")} <= {"test", "test-success", "test-failure"}:
            said = f"{item['kind']} {item['metadata']['name']} as a hook ({hooks})"
            raise ShimError(f"chart {chart} has {said}, which is not run here; hooks: Ignore applies the chart without its hooks")


# --- kept renderings ---


def _read_kept(path: Path) -> list[Object] | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
        os.utime(path)
    except (OSError, msgspec.DecodeError):
        return None
    return found


def _keep(path: Path, found: list[Object]) -> None:
    """Never an error: the objects are there, and a disk that is full now may take them next time."""
    try:
        durable.write(path, msgspec.json.encode(found))
        kept = sorted(path.parent.glob("*.json"), key=_time, reverse=True)
        for old in kept[MAX_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("chart.not_kept", folder=str(path.parent), reason=error.strerror or str(error), effect="it is rendered again")


def _time(path: Path) -> float:
    """Of its last use; 0 for what another rendering's clearing has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
