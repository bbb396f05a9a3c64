"""The project's own container image, from the wheel and Debian packages, without a container engine and without root rights.

Debian's packages are downloaded by apt, which checks their signatures, and unpacked: Python, the C libraries it needs, certificates, time
zones. No shell, no package manager: what an edge does not run cannot be broken into. Each package is recorded in
var/lib/dpkg/status.d, where scanners look. Python packages come from `requirements/` by hash. Modules are compiled, because a container's
file system is often read-only and a controller that compiles its modules at each start takes twice as long.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools import image

ROOT = Path(__file__).parent.parent
NAME = "banyan-edge"
EXTRAS = ("serve", "shim", "kubernetes")
UNUSED = ("kubernetes/aio",)  # 68 MB: the client once more, for asyncio
PROGRAMS = ("helm",)  # that wheels bring, and that are no Python
PYTHON = "3.11"  # of Debian 12, and so of this image
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6", "ca-certificates", "tzdata", "netbase", "base-files")
# Needed by packages' own install scripts, which are not run.
LEFT_OUT = {"mawk", "tar", "dpkg", "debconf", "openssl", "libacl1", "libselinux1", "libpcre2-8-0", "libmd0", "libzstd1"}
USELESS = ("usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/info", "var/lib/dpkg")
SITE_PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"
USER = 65532  # nobody's: not root, and not a user of any machine
DATA = "var/lib/banyan"
STEP_SECONDS = 600
PASSWD = f"root:x:0:0:root:/root:/sbin/nologin\nbanyan:x:{USER}:{USER}::/{DATA}:/sbin/nologin\n"
LAUNCHER = f"""#!/usr/bin/python{PYTHON}
import sys

from banyanctl.main import main

sys.exit(main())
"""


class CannotBuild(Exception):
    """The image cannot be built here; the message says what is missing and how to go on."""


def build(output: Path, wheel: Path | None = None, keep: Path | None = None) -> str:
    """Write the image's tar; what was written, for people. Raises CannotBuild.

    ``keep`` is a folder for what changes seldom, Debian's part and the Python packages: the next image takes a third of the time. An image
    that is published is built without, so that it has Debian's newest.
    """
    if platform.machine() not in image.ARCHITECTURES:
        raise CannotBuild(f"no image is made for {platform.machine()}; use the Containerfile with a container engine")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotBuild(
                f"{tool} is missing: this needs Debian 12 or a container of it; elsewhere build the Containerfile with an engine"
            )
    with tempfile.TemporaryDirectory(prefix="banyan-image-") as name, _kept(keep or Path(name), _recipe()) as seldom:
        folder = Path(name)
        built = wheel or build_wheel(folder / "wheel")
        if not (seldom / "whole").exists():
            debian(seldom / "base", folder / "debs")
            dependencies(seldom / "python", seldom / "programs", built)
            (seldom / "whole").touch()
        own = own_package(folder / "own", built)
        version = built.name.split("-")[1]
        made = image.Image(
            name=f"{NAME}:{version}",
            layers=[
                image.tree(seldom / "base"),
                [*image.tree(seldom / "python", SITE_PACKAGES), *image.tree(seldom / "programs", "usr/local/bin")],
                [
                    *image.tree(own, SITE_PACKAGES),
                    image.Entry("usr/local/bin/banyan", LAUNCHER.encode()),
                    image.Entry(DATA, mode=0o750, user=USER),
                    image.Entry("tmp", mode=0o1777),
                    image.Entry("etc/passwd", PASSWD.encode(), 0o644),
                    image.Entry("etc/group", f"root:x:0:\nbanyan:x:{USER}:\n".encode(), 0o644),
                ],
            ],
            entrypoint=["/usr/local/bin/banyan"],
            command=["--help"],
            environment={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": f"/{DATA}",
                "LANG": "C.UTF-8",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
            },
            user=f"{USER}:{USER}",
            folder=f"/{DATA}",
            labels={"org.opencontainers.image.title": NAME, "org.opencontainers.image.version": version},
        )
        digest = image.write(made, output)
    return f"{output}: {made.name}, {output.stat().st_size / 2**20:.0f} MiB, {digest}"


def build_wheel(target: Path) -> Path:
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)], target)
    (wheel,) = target.glob("*.whl")
    return wheel


def debian(target: Path, downloads: Path) -> Path:
    """Debian's part of the image, unpacked into `target`."""
    alone = ["-o", "Dir::State::status=/dev/null"]  # as if nothing were installed on this machine
    answer = run(["apt-get", *alone, "install", "--no-install-recommends", "--print-uris", "-qq", *PACKAGES], downloads)
    names = sorted({line.split()[1].partition("_")[0] for line in answer.splitlines() if line.startswith("'")} - LEFT_OUT)
    if f"python{PYTHON}-minimal" not in names:
        raise CannotBuild(f"apt knows no python{PYTHON}: this needs Debian 12's package sources (apt-get update), or the Containerfile")
    run(["apt-get", *alone, "-o", "APT::Sandbox::User=", "download", "-qq", *names], downloads)
    for package in sorted(downloads.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(target)], target)
        record = target / "var/lib/dpkg/status.d" / package.name.partition("_")[0]
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(run(["dpkg-deb", "--field", str(package)], target), encoding="utf-8")
    records = target / "status.d"
    (target / "var/lib/dpkg/status.d").rename(records)
    for useless in USELESS:
        shutil.rmtree(target / useless, ignore_errors=True)
    records.rename(_made(target / "var/lib/dpkg") / "status.d")
    for document in (target / "usr/share/doc").rglob("*"):
        if document.is_file() and document.name != "copyright":
            document.unlink()
    certificates = sorted((target / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = _made(target / "etc/ssl/certs") / "ca-certificates.crt"
    bundle.write_bytes(b"".join(certificate.read_bytes() for certificate in certificates))
    (target / "usr/bin/python3").symlink_to(f"python{PYTHON}")
    compile_modules(target / f"usr/lib/python{PYTHON}", f"/usr/lib/python{PYTHON}")
    return target


def dependencies(target: Path, programs: Path, wheel: Path) -> None:
    """What the wheel needs, without the wheel itself: releases share it. Programs that wheels bring go into a folder of their own."""
    alone = target.with_name("alone")
    wanted = f"{_distribution(wheel)}[{','.join(EXTRAS)}] @ {wheel.resolve().as_uri()}"
    _install(target, "--constraint", str(ROOT / "requirements/dev.lock"), wanted)
    for program in PROGRAMS:
        (target / "bin" / program).rename(_made(programs) / program)
    for path in _install(alone, "--no-deps", str(wheel.resolve())).iterdir():
        other = target / path.name
        if other.is_dir():
            shutil.rmtree(other)
        else:
            other.unlink(missing_ok=True)
    shutil.rmtree(alone)
    _finish(target)


def own_package(target: Path, wheel: Path) -> Path:
    """The wheel itself, installed."""
    _install(target, "--no-deps", str(wheel.resolve()))
    _finish(target)
    return target


def _install(target: Path, *what: str) -> Path:
    uv = str(Path(sys.executable).with_name("uv"))
    common = [uv, "pip", "install", "--quiet", "--python-version", PYTHON, "--only-binary", ":all:", "--link-mode", "copy", "--target"]
    run([*common, str(target), *what], target)
    return target


def _finish(target: Path) -> None:
    """Leave out what names this machine and what no container runs; compile the rest."""
    shutil.rmtree(target / "bin", ignore_errors=True)  # launchers that name this machine's Python
    for leftover in [*target.rglob("direct_url.json"), *target.rglob("uv_cache.json"), target / ".lock"]:
        leftover.unlink(missing_ok=True)
    for unused in UNUSED:
        shutil.rmtree(target / unused, ignore_errors=True)
    for tests in [path for path in target.rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests, ignore_errors=True)
    compile_modules(target, f"/{SITE_PACKAGES}")


def _recipe() -> str:
    """Another one, another result."""
    files = (Path(__file__), ROOT / "pyproject.toml", ROOT / "requirements/dev.lock")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


@contextlib.contextmanager
def _kept(folder: Path, recipe: str) -> Iterator[Path]:
    """The folder of this recipe, locked; those of others are removed."""
    with (_made(folder) / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / f"seldom-{recipe}"
        for other in folder.glob("seldom-*"):
            if other != found or not (other / "whole").exists():
                shutil.rmtree(other)
        yield _made(found)


def compile_modules(folder: Path, inside: str) -> None:
    """Compile modules as if they were at `inside`. The result depends on the source alone, not on dates."""
    if sys.version_info[:2] != (3, 11):
        raise CannotBuild(
            f"the image has Python {PYTHON} and its modules are compiled by the same; run this with it: make PYTHON=python{PYTHON} ..."
        )
    argv = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    subprocess.run(
        [*argv, "-s", str(folder), "-p", inside, str(folder)], env=environment, capture_output=True, timeout=STEP_SECONDS, check=False
    )


def run(argv: Sequence[str], folder: Path) -> str:
    """Run a tool in a folder; what it printed. Raises CannotBuild with its own words."""
    done = subprocess.run(list(argv), cwd=_made(folder), capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"{' '.join(argv[:3])} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def _distribution(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("Name: "))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
