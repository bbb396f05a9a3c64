"""Build a real Kubernetes, etcd, kwok and kine from their Go modules, once, into a cache outside the work tree.

The modules and their hashes are committed under `go/`, so every machine builds the same sources, from the Go module proxy alone. A
program that is in the cache is whole: it is built under another name and renamed. A build that was broken off goes on where it stopped
(each program is kept, and the Go build cache keeps the rest), and of two builders at once one waits for the other.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.testbed import host
from tools.needs import Missing, cache, go

KUBERNETES = "1.34.2"
KWOK = "0.8.0"
MODULES = Path(__file__).parent / "go"
BUILD_SECONDS = 3600  # one program, on a slow machine that does other things too
VERSION_VARIABLE = "BANYAN_TESTBED_VERSION"
"""Environment variable: the version of Kubernetes of members that name none. For `make testbed-compat`."""
STAMPS = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Sources:
    """A module that the proxy gives out as an archive, but not its go.mod: unpacked here, and built from the folder."""

    module: str
    version: str
    sha256: str
    """Of the archive; the checksum database does not know it, so that the repository has to."""

    @property
    def unpacked(self) -> Path:
        return cache() / "sources" / f"{self.module}@{self.version}"


K3S = Sources("github.com/k3s-io/kubernetes", "v1.34.2-k3s1", "cec971086ff450f003a2512d52870df3550edca204c7d583da15d6ce99f19697")
ARCHIVE_LIMIT = 64 << 20
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Recipe:
    """How one program is built."""

    name: str
    """Of the file in the cache."""
    module: str
    """Folder under `go/` with the go.mod and go.sum to build with."""
    package: str
    flags: str = "-s -w"
    cgo: bool = False
    sources: Sources | None = None
    """What the module's go.mod expects as the folder `fork` beside it."""


def kubernetes(name: str, module: str = "kubernetes", version: str = KUBERNETES, sources: Sources | None = None) -> Recipe:
    """A program of Kubernetes that reports `version`; without the stamp it would say v0.0.0 and clients would distrust it."""
    major, minor, _ = version.split(".", 2)
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(["-s", "-w", *(f"-X {STAMPS}.{key}={value}" for key, value in stamps.items())])
    package = f"./{name}" if (MODULES / module / name).is_dir() else f"k8s.io/kubernetes/cmd/{name}"
    return Recipe(name, module, package, flags, sources=sources)


PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
RECIPES = (
    # Debian's 3.4.23 lacks what an API server asks of its store since 1.31: it refuses to stream initial events, and kwok and other new
    # clients then wait half a minute at each start.
    Recipe("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    *(kubernetes(name) for name in PROGRAMS),
    Recipe("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    Recipe("kine", "kine", "github.com/k3s-io/kine", cgo=True),  # its SQLite is C
)
ANY_VERSION = {"etcd", "kwok", "kine"}  # serve every version of Kubernetes


def default_version() -> str:
    return os.environ.get(VERSION_VARIABLE, KUBERNETES)


def folder(version: str = KUBERNETES) -> Path:
    return cache() / f"kubernetes-{version}"


def find(name: str, version: str = KUBERNETES) -> Path:
    """A program of the testbed: of KUBEBUILDER_ASSETS (for the default version), else of the cache. Raises Missing."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [Path(assets) / name] if assets and version == KUBERNETES else []
    candidates.append((folder() if name in ANY_VERSION else folder(version)) / name)
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    make = "make testbed" if version == KUBERNETES else "make testbed-compat"
    raise Missing(f"{name} {version} is not built yet; `{make}` builds it once (about ten minutes on two cores)")


def missing(recipes: Sequence[Recipe] = RECIPES, version: str = KUBERNETES) -> list[Recipe]:
    def lacks(recipe: Recipe) -> bool:
        try:
            find(recipe.name, version)
        except Missing:
            return True
        return False

    return [recipe for recipe in recipes if lacks(recipe)]


def build(recipes: Sequence[Recipe] = RECIPES, version: str = KUBERNETES) -> int:
    """Build what is not here yet; how many programs that were. Raises Missing with the compiler's own words."""
    if not missing(recipes, version):
        return 0
    target = folder(version)
    target.mkdir(parents=True, exist_ok=True)
    with _only_builder(target):
        wanted = missing(recipes, version)  # again: another builder may have been busy with them
        for number, recipe in enumerate(wanted, 1):
            started = time.monotonic()
            print(f"testbed: building {recipe.name} ({number} of {len(wanted)})", flush=True)
            compile_one(recipe, target)
            size = (target / recipe.name).stat().st_size / 2**20
            print(f"testbed: {recipe.name} built in {time.monotonic() - started:.0f} s, {size:.0f} MiB", flush=True)
        return len(wanted)


def compile_one(recipe: Recipe, target: Path) -> None:
    """Build one program into the folder `target`, whole or not at all."""
    if recipe.cgo:
        host.require("cc")
    descriptor, name = tempfile.mkstemp(prefix=f".{recipe.name}-", dir=target)
    os.close(descriptor)
    temporary = Path(name)
    try:
        argv = [str(go()), "build", "-trimpath", "-ldflags", recipe.flags, "-o", str(temporary), recipe.package]
        environment = os.environ | {"CGO_ENABLED": "1" if recipe.cgo else "0", "GO111MODULE": "on", "GOWORK": "off"}
        with _workplace(recipe, environment) as place:
            done = subprocess.run(argv, cwd=place, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode != 0:
            raise Missing(
                f"{recipe.name} could not be built ({' '.join(argv[:2])} in {MODULES / recipe.module}): {done.stderr.strip()[-2000:]}"
            )
        temporary.chmod(0o755)
        temporary.rename(target / recipe.name)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _workplace(recipe: Recipe, environment: dict[str, str]) -> Iterator[Path]:
    """Where Go is run: the committed folder, or a copy of it with the sources that it needs beside it."""
    sources = recipe.sources
    if sources is None:
        yield MODULES / recipe.module
        return
    environment["GONOSUMDB"] = f"{sources.module}/*"  # verified by the committed go.sum instead
    with tempfile.TemporaryDirectory() as name:
        place = shutil.copytree(MODULES / recipe.module, Path(name) / "module")
        (place / "fork").symlink_to(fetch(sources))
        yield place


def fetch(sources: Sources) -> Path:
    """The unpacked archive, from the Go module proxy. Raises Missing."""
    if sources.unpacked.exists():
        return sources.unpacked
    proxies = subprocess.run([str(go()), "env", "GOPROXY"], capture_output=True, text=True, timeout=60, check=True).stdout
    url = f"{proxies.split(',')[0].strip()}/{sources.module}/@v/{sources.version}.zip"
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
            content = answer.read(ARCHIVE_LIMIT)
    except (OSError, ValueError) as error:
        raise Missing(f"{url} cannot be had: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sources.sha256:
        raise Missing(f"{url} is not what it was: its sha256 is {found}, not {sources.sha256}")
    sources.unpacked.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sources.unpacked.parent) as folder, tempfile.TemporaryFile() as archive:
        archive.write(content)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        (Path(folder) / f"{sources.module}@{sources.version}").rename(sources.unpacked)
    return sources.unpacked


@contextmanager
def _only_builder(target: Path) -> Iterator[None]:
    with (target / ".lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"testbed: another builder is at work in {target}; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in target.glob(".*-????????"):  # of a builder that was killed; none is at work now
            left_over.unlink(missing_ok=True)
        yield
