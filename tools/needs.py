"""What some tests need beyond Python: found, built, or named as missing. A pytest plugin (see pyproject.toml).

A test says `@pytest.mark.needs("kubectl")`. On a laptop that has no such tool and no way to get it the test is left out, and the
summary names it and why; with CI=true that is a failure, for a check that CI leaves out is no check.

    kubectl   1.30 or newer from PATH or $BANYAN_KUBECTL; else built from its Go module into ~/.cache/banyan-testbed
    go        the Go toolchain, for programs under e2e/
    cc        a C compiler, for the disk that loses power
    root      uid 0 with namespaces of the network and of mounts
    cgroups   control groups that may be written: the kernel holds an instance to its processor time
    systemd-analyze   checks units; from Debian's package systemd
    kserve    the interpreter of an environment with KServe's clients, installed once into ~/.cache/banyan-peers
    buckets   the same with a server that speaks S3
    registry  CNCF Distribution's OCI registry: on the PATH, or from Debian's package, unpacked once into ~/.cache/banyan-testbed

What was found is on the PATH of the test and of what it starts, so that a program which calls `kubectl` by its name gets the same one.
"""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KUBECTL_OLDEST = (1, 30)
KUBERNETES = "1.34.2"  # what is built where no kubectl is installed
BUILD_SECONDS = 900
# Modules that live in the Kubernetes repository and are published beside it with the version 0.34.2 for 1.34.2.
STAGING = (
    "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap code-generator "
    "component-base component-helpers controller-manager cri-api cri-client csi-translation-lib dynamic-resource-allocation "
    "endpointslice externaljwt kms kube-aggregator kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics "
    "mount-utils pod-security-admission sample-apiserver sample-cli-plugin sample-controller"
).split()


class Missing(Exception):
    """The tool is not here and cannot be made here; the message says how to get it."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "banyan-testbed"


def _kubectl_version(path: str) -> tuple[int, int]:
    try:
        done = subprocess.run([path, "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=30, check=False)
        version = json.loads(done.stdout)["clientVersion"]
        return int(version["major"]), int(version["minor"].rstrip("+"))
    except (OSError, ValueError, KeyError):
        return 0, 0


def _built() -> Path:
    return cache() / f"kubernetes-{KUBERNETES}" / "kubectl"


def installed_kubectl() -> Path | None:
    """One that is new enough, a person's own or built before."""
    for candidate in (os.environ.get("BANYAN_KUBECTL"), shutil.which("kubectl"), str(_built())):
        if candidate and Path(candidate).exists() and _kubectl_version(candidate) >= KUBECTL_OLDEST:
            return Path(candidate)
    return None


@functools.cache
def kubectl() -> Path:
    """An unmodified kubectl, 1.30 or newer; built from Go modules once where there is none. Raises Missing."""
    return installed_kubectl() or plain_kubectl()


@functools.cache
def plain_kubectl() -> Path:
    """Kubernetes' own, whatever is installed: some distributors' is a wrapper that asks the server for its version before each command.
    Raises Missing."""
    built = _built()
    built.parent.mkdir(parents=True, exist_ok=True)
    with (built.parent / "kubectl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one run all need it at once: one builds, the others find it built
        return built if _kubectl_version(str(built)) >= KUBECTL_OLDEST else _build_kubectl(built)


def _build_kubectl(target: Path) -> Path:
    try:
        tool = go()
    except Missing as missing:
        raise Missing(f"no kubectl 1.30+ on the PATH or as $BANYAN_KUBECTL, and none can be built: {missing}") from None
    staging = "0." + KUBERNETES.partition(".")[2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["module banyan.dev/testbed", "go 1.24.0", f"require k8s.io/kubernetes v{KUBERNETES}"]
        lines += [f"replace k8s.io/{module} => k8s.io/{module} v{staging}" for module in STAGING]
        (folder / "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "tools.go").write_text("package tools\n", encoding="utf-8")
        major, minor, _ = KUBERNETES.split(".")
        stamp = "k8s.io/component-base/version"
        flags = f"-s -w -X {stamp}.gitVersion=v{KUBERNETES} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
        package = "k8s.io/kubernetes/cmd/kubectl"
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
        for argv in (
            [str(tool), "get", f"{package}@v{KUBERNETES}"],
            [str(tool), "build", "-trimpath", "-ldflags", flags, "-o", str(folder / "kubectl"), package],
        ):
            done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            if done.returncode != 0:
                raise Missing(f"kubectl could not be built with {' '.join(argv[:3])}: {done.stderr.strip()[-500:]}")
        shutil.move(folder / "kubectl", target)
    return target


@functools.cache
def go() -> Path:
    """The Go toolchain. Raises Missing."""
    found = shutil.which("go") or ("/usr/local/go/bin/go" if Path("/usr/local/go/bin/go").exists() else None)
    if not found:
        raise Missing("Go is not installed; get Go 1.24+ from https://go.dev/dl/ and put it on the PATH")
    return Path(found)


@functools.cache
def root() -> Path:
    """The `ip` tool, where namespaces of the network and of mounts can be made. Raises Missing."""
    found = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if os.geteuid() != 0:
        raise Missing("namespaces, mounts and device nodes are for root; run the tests as root")
    if not found:
        raise Missing("`ip` is not installed (Debian: apt-get install iproute2)")
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, timeout=30, check=False)
    if probe.returncode != 0:
        raise Missing("the kernel refuses new namespaces here")
    return Path(found)


def cc() -> Path:
    """A C compiler. Raises Missing."""
    found = shutil.which("cc")
    if not found:
        raise Missing("no C compiler is installed (Debian: apt-get install gcc libc6-dev)")
    return Path(found)


@functools.cache
def cgroups() -> Path:
    """A folder of control groups that may be written. Raises Missing."""
    from cluster_shim.process.supervisor import limits  # not with this plugin: coverage begins after it

    groups = [Path(folder) for folder in limits.detect(f"needs-{os.getpid()}").folders("")]
    if not groups:
        raise Missing("control groups of cpu and memory may not be written here; run the tests as root, where they are delegated")
    for group in groups:
        group.rmdir()
    return groups[0].parent


def systemd_analyze() -> Path:
    """The checker of systemd units. Raises Missing."""
    found = shutil.which("systemd-analyze")
    if not found:
        raise Missing("systemd-analyze is not installed (Debian: apt-get install systemd)")
    return Path(found)


@functools.cache
def kserve() -> Path:
    """The interpreter of an environment that has KServe's inference clients. Raises Missing."""
    from benchmarks.peers import environments

    try:
        return environments.python("clients")
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"KServe's clients cannot be installed: {error}") from None


@functools.cache
def buckets() -> Path:
    """The interpreter of an environment that has moto's server. Raises Missing."""
    from benchmarks.peers import environments

    try:
        return environments.python("buckets")
    except (OSError, subprocess.SubprocessError) as error:
        raise Missing(f"moto's server cannot be installed: {error}") from None


@functools.cache
def registry() -> Path:
    """The registry that most others are measured by. Raises Missing."""
    if installed := shutil.which("docker-registry"):
        return Path(installed)
    folder = cache() / "docker-registry"
    found = folder / "usr" / "bin" / "docker-registry"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "docker-registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return found if found.exists() else _unpacked_registry(folder, found)


def _unpacked_registry(folder: Path, found: Path) -> Path:
    """Debian's package unpacked, not installed: an installed one is a service that starts with the machine."""
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise Missing("no docker-registry is installed, and this is no Debian that could bring it: put CNCF Distribution's on the PATH")
    with tempfile.TemporaryDirectory() as name:
        for argv in (
            ["apt-get", "download", "-qq", "docker-registry"],
            ["apt-get", "update", "-qq"],
            ["apt-get", "download", "-qq", "docker-registry"],
        ):
            done = subprocess.run(argv, cwd=name, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            if packages := sorted(Path(name).glob("*.deb")):
                break
        else:
            raise Missing(f"docker-registry cannot be downloaded (Debian: apt-get install docker-registry): {done.stderr.strip()[-300:]}")
        subprocess.run(["dpkg-deb", "--extract", str(packages[0]), str(folder)], check=True, timeout=BUILD_SECONDS)
    if not found.exists():
        raise Missing(f"Debian's package docker-registry has no {found.name} where it should be")
    return found


TOOLS: dict[str, Callable[[], Path]] = {
    "kubectl": kubectl, "go": go, "cc": cc, "root": root, "cgroups": cgroups, "systemd-analyze": systemd_analyze, "kserve": kserve,
    "buckets": buckets, "registry": registry,
}  # fmt: skip
ON_PATH = ("kubectl", "go")  # what other programs call by its name
_left_out: dict[str, list[str]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*tools): left out, and named, where a tool is missing; a failure with CI=true (tools/needs.py)"
    )


@pytest.hookimpl(tryfirst=True)  # before the test's fixtures, which need the tool too
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if reason := lacks(name, item.nodeid):
                pytest.skip(reason)


def lacks(name: str, test: str) -> str:
    """Why ``test`` cannot have the tool, which the summary then says; empty where it can. Fails the test where CI runs."""
    try:
        found = TOOLS[name]()
    except Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {name}: {missing}", pytrace=False)
        _left_out.setdefault(f"{name}: {missing}", []).append(test)
        return f"needs {name}: {missing}"
    if name in ON_PATH:
        put_on_path(found)
    return ""


def put_on_path(tool: Path) -> None:
    """From now on its bare name is this one, here and in what is started."""
    if shutil.which(tool.name) != str(tool):
        os.environ["PATH"] = f"{tool.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, tests in _left_out.items():
        terminalreporter.write_line(f"left out, for want of {reason}:", yellow=True)
        for test in tests:
            terminalreporter.write_line(f"  {test}")


@pytest.fixture(name="kubectl", scope="session")
def kubectl_path() -> Iterator[Path]:
    """The path of an unmodified kubectl; mark the test `needs("kubectl")`."""
    yield kubectl()
