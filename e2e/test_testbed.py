"""The testbed itself: real clusters start, are what they say, come to grief in the ways that tests need, and leave nothing behind."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from e2e.support import ROOT, until
from e2e.testbed import Member, Shape, Testbed, build, registry
from e2e.testbed.build import KUBERNETES, default_version
from e2e.testbed.components import APISERVER, SOCKET
from e2e.testbed.fixtures import begin
from e2e.testbed.machine import KEEPER, MachineError
from e2e.testbed.member import Ended
from tools.needs import Missing, go, kubectl

pytestmark = pytest.mark.needs("kubectl")
WEB = "echo started; mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"
GONE_SECONDS = 20


# --- control planes ---


def test_a_control_plane_serves_and_keeps_an_audit_log(control_plane: Member) -> None:
    control_plane.kubectl("create", "configmap", "audited", "--from-literal=secret-word=xyzzy")
    assert control_plane.kubectl("get", "configmap", "audited", "-o", "jsonpath={.data.secret-word}") == "xyzzy"
    log = control_plane.audit_log.read_text(encoding="utf-8")
    (entry,) = [line for line in log.splitlines() if '"verb":"create"' in line and '"name":"audited"' in line]
    assert json.loads(entry)["user"]["username"] == "admin"
    assert "xyzzy" not in log  # level Metadata: who and what, never the content


def test_people_have_their_own_rights_and_dates(control_plane: Member) -> None:
    ann = control_plane.user("ann", ["watchers"])
    assert "cannot list" in control_plane.kubectl("get", "pods", kubeconfig=ann, check=False)
    control_plane.kubectl("create", "clusterrole", "watchers", "--verb=list", "--resource=pods")
    control_plane.kubectl("create", "clusterrolebinding", "watchers", "--clusterrole=watchers", "--group=watchers")
    until("ann may look", lambda: "No resources found" in control_plane.kubectl("get", "pods", kubeconfig=ann, check=False))
    late = control_plane.user("late", ["watchers"], valid=timedelta(days=-1))
    answer = control_plane.kubectl("get", "pods", kubeconfig=late, check=False)
    assert "Unauthorized" in answer or "must be logged in" in answer or "expired" in answer


def test_the_api_server_stops_hangs_and_restarts(control_plane: Member) -> None:
    control_plane.stop(APISERVER)
    with pytest.raises(ConnectionRefusedError):
        control_plane.request("GET", "/readyz")
    control_plane.start(APISERVER)
    control_plane.wait_api()
    control_plane.pause(APISERVER)
    try:
        with pytest.raises(TimeoutError):
            control_plane.request("GET", "/readyz", seconds=1)
    finally:
        control_plane.resume(APISERVER)
    control_plane.wait_api()
    control_plane.restart_apiserver()


def test_nodes_that_kwok_plays_run_pods(kwok_member: Member) -> None:
    assert sorted(kwok_member.ready_nodes()) == ["kwok-0", "kwok-1", "kwok-2"]
    kwok_member.kubectl("create", "deployment", "many", "--image=nowhere/at-all:1", "--replicas=30")
    kwok_member.kubectl("rollout", "status", "deployment/many", "--timeout=60s")
    pods = json.loads(kwok_member.kubectl("get", "pods", "-l", "app=many", "-o", "json"))["items"]
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}
    assert len({pod["status"]["podIP"] for pod in pods}) == 30
    kwok_member.kubectl("delete", "deployment", "many")
    until("they go", lambda: "No resources" in kwok_member.kubectl("get", "pods", "-l", "app=many", check=False))
    kwok_member.kubectl("create", "job", "once", "--image=nowhere/at-all:1")
    kwok_member.kubectl("wait", "job/once", "--for=condition=complete", "--timeout=60s")


def test_a_k3s_style_member_keeps_its_objects_in_sqlite(k3s_member: Member) -> None:
    k3s_member.kubectl("create", "configmap", "kept", "--from-literal=in=sqlite")
    assert (k3s_member.folder / "kine.db").read_bytes()[:15] == b"SQLite format 3"
    assert k3s_member.request("GET", "/version")[1]["gitVersion"] == f"v{default_version()}+k3s1"
    nodes = k3s_member.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}")
    assert nodes == f"v{default_version()}+k3s1"
    assert "datastore" in k3s_member.machine.running()
    k3s_member.kill("datastore")
    k3s_member.start("datastore")
    k3s_member.wait_api()
    assert k3s_member.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.in}") == "sqlite"


def test_members_stand_side_by_side(control_plane: Member, kwok_member: Member) -> None:
    assert control_plane.api_url != kwok_member.api_url
    uids = [
        json.loads(member.kubectl("get", "namespace", "kube-system", "-o", "json"))["metadata"]["uid"]
        for member in (control_plane, kwok_member)
    ]
    assert len(set(uids)) == 2
    assert kubectl().exists()


# --- a whole node ---


@pytest.fixture(scope="module")
def web(whole_member: Member) -> Iterator[Member]:
    """A deployment of one pod that serves its name, and a Service."""
    whole_member.kubectl("create", "deployment", "web", "--image=busybox:testbed", "--", "sh", "-c", WEB)
    whole_member.kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
    whole_member.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    yield whole_member
    whole_member.kubectl("delete", "deployment,service", "web", "--wait=false")


def test_pods_run_and_can_be_reached(web: Member) -> None:
    assert web.kubectl("logs", "deploy/web").splitlines() == ["started"]
    assert web.kubectl("exec", "deploy/web", "--", "cat", "/www/index.html").startswith("web-")
    assert web.kubectl("exec", "-i", "deploy/web", "--", "sh", "-c", "read word; echo $word-$word", stdin="twice\n") == "twice-twice\n"
    from_pod = web.kubectl("exec", "deploy/web", "--", "wget", "-q", "-O", "-", f"http://{service_address(web)}/")
    assert from_pod.strip() == from_node(web) == web.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}")


FETCH = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
CALL = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"


def service_address(web: Member) -> str:
    return web.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")


def from_node(web: Member) -> str:
    """What the Service answers a program of the node itself."""
    return web.machine.run([sys.executable, "-c", FETCH, f"http://{service_address(web)}/"]).strip()


def test_port_forward_goes_through(web: Member) -> None:
    argv = [str(kubectl()), "--kubeconfig", str(web.kubeconfig), "port-forward", "deploy/web", ":8080"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found
            with socket.create_connection(("127.0.0.1", int(found[1])), 10) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
        finally:
            process.terminate()
    assert b" 200 OK" in answer
    assert b"web-" in answer


def test_a_site_calls_out_and_nothing_calls_in(web: Member) -> None:
    with listening(web.wan_host) as (port, callers):
        call = f"echo hello | nc -w 3 {web.wan_host} {port}"

        def from_pod() -> str:
            return web.kubectl("exec", "deploy/web", "--", "sh", "-c", f"{call}; echo ended", check=False)

        assert "heard" in from_pod()
        assert callers == [web.machine.wide_address]  # translated: neither the pod's address nor the node's
        web.cut_uplink()
        assert "heard" not in from_pod()
        with pytest.raises(MachineError):  # nor from the node
            web.machine.run([sys.executable, "-c", CALL, web.wan_host, str(port)])
        assert from_node(web).startswith("web-")  # the site's own Services are on this side of the uplink
        web.heal_uplink()
        assert "heard" in from_pod()
        web.machine.run([sys.executable, "-c", CALL, web.wan_host, str(port)])
    with pytest.raises(TimeoutError):  # not refused: dropped
        socket.create_connection((web.machine.wide_address, 6443), 1).close()


def test_a_reboot_brings_the_pod_back(web: Member) -> None:
    before = pod(web)
    web.reboot_node()

    def restarted() -> bool:
        now = pod(web)["status"]["containerStatuses"][0]
        return bool(now["ready"] and now["restartCount"] > before["status"]["containerStatuses"][0]["restartCount"])

    until("the container runs again", restarted)
    assert pod(web)["metadata"]["uid"] == before["metadata"]["uid"]
    assert "web-" in until("it answers", lambda: web.kubectl("exec", "deploy/web", "--", "cat", "/www/index.html", check=False))


def test_the_projects_own_image_runs_without_rights(whole_member: Member, edge_image: Path) -> None:
    """A whole controller in a pod: no root, no writable file system but its data."""
    whole_member.load_image(edge_image)
    listed = whole_member.machine.run(["ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "list", "--quiet"])
    (image,) = {line for line in listed.splitlines() if "/banyan-edge:" in line}
    whole_member.kubectl("apply", "-f", "-", stdin=json.dumps(controller(image.rpartition("/")[2])))
    until("it serves", lambda: "Ready" in whole_member.kubectl("exec", "root", "--", "/usr/local/bin/banyan", "tree"))
    whole_member.kubectl("delete", "pod", "root", "--now")


def controller(image: str) -> dict[str, Any]:
    hardened = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    common = {
        "image": image,
        "imagePullPolicy": "Never",
        "env": [{"name": "BANYAN_DATA", "value": "/var/lib/banyan/root"}],
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/banyan"}],
        "securityContext": hardened,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532},
            "volumes": [{"name": "data", "emptyDir": {}}],
            "initContainers": [common | {"name": "init", "args": ["init", "root", "--shim", "none"]}],
            "containers": [common | {"name": "run", "args": ["run"]}],
        },
    }


def pod(member: Member) -> dict[str, Any]:
    (found,) = json.loads(member.kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
    return dict(found)


@contextlib.contextmanager
def listening(address: str) -> Iterator[tuple[int, list[str]]]:
    """A server on the wide network that says `heard` to whoever calls; its port, and the callers' addresses."""
    callers: list[str] = []
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, (caller, _) = server.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(b"heard\n")
                    callers.append(caller)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], callers
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


# --- nothing is left ---

OWNER = """
import json, sys, time
from e2e.testbed import Shape, Testbed
testbed = Testbed()
shape = Shape.whole() if sys.argv[1] == "whole" else Shape.control_plane()
member = testbed.start("orphan", shape)
if shape.node:
    member.kubectl("run", "sleeper", "--image=busybox:testbed", "--", "sleep", "1000")
    member.kubectl("wait", "pod/sleeper", "--for=condition=Ready", "--timeout=60s")
keeper = json.loads((member.folder / "keeper.json").read_text())
left = {"folder": str(member.folder), "pids": member.machine.host_pids(), "cgroup": member.machine.cgroup}
print(json.dumps(left | {"keeper": keeper["pid"], "link": f"banyan{member.machine.number}"}), flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def owner_of(shape: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    argv = [sys.executable, "-c", OWNER, shape]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process, json.loads(line)
        finally:
            process.kill()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.usefixtures("whole_member")
def test_a_killed_owner_leaves_nothing() -> None:
    with owner_of("whole") as (process, left):
        assert len(alive(left["pids"])) >= 10  # six components, shims, sleep, pause, the keeper's own two
        assert any(path.exists() for path in registry.cgroup_folders(left["cgroup"]))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until("every process is gone", lambda: alive(left["pids"]) == [], GONE_SECONDS)
        until("its folder is gone", lambda: not Path(left["folder"]).exists(), GONE_SECONDS)
        until("its keeper is gone", lambda: not Path(f"/proc/{left['keeper']}").exists(), GONE_SECONDS)
        assert not any(path.exists() for path in registry.cgroup_folders(left["cgroup"]))
        assert not Path(f"/sys/class/net/{left['link']}").exists()
        assert left["folder"] not in Path("/proc/mounts").read_text(encoding="utf-8")


@pytest.mark.usefixtures("control_plane")
def test_what_a_killed_keeper_leaves_is_swept() -> None:
    with owner_of("control-plane") as (process, left):
        os.kill(left["keeper"], signal.SIGKILL)
        until("every process is gone", lambda: alive(left["pids"]) == [], GONE_SECONDS)
        registry.sweep()
        assert Path(left["folder"]).exists()  # its owner lives, and may want to look
        process.kill()
        process.wait()
        assert Path(left["folder"]).exists()
        assert registry.sweep() == 1
        assert not Path(left["folder"]).exists()


@pytest.mark.usefixtures("control_plane")
def test_a_component_that_ends_is_named_at_once(testbed_members: Testbed) -> None:
    with pytest.raises(Ended, match=r"kube-apiserver of broken ended with 1:\n(?s:.)*no-such-flag"):
        testbed_members.start("broken", Shape(controllers=False, apiserver=("--no-such-flag",)))
    assert testbed_members.members == {}


def test_a_member_of_one_test(testbed_members: Testbed) -> None:
    member = begin(testbed_members, "mine", Shape.control_plane())
    folder = member.folder
    testbed_members.remove("mine")
    assert not folder.exists()


@pytest.mark.usefixtures("control_plane")
def test_the_second_build_does_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "e2e.testbed", "build"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr
    assert "building" not in done.stdout


KEEP = """
import json, os, socket, subprocess, sys, time
keeper, folder, how = sys.argv[1:]
ours, theirs = socket.socketpair()
owner = os.pidfd_open(os.getpid())
description = {"folder": folder, "hostname": "x", "cgroups": [], "network": None, "door": None}
argv = [sys.executable, "-I", "-S", keeper, json.dumps(description), str(theirs.fileno()), str(owner)]
process = subprocess.Popen(argv, pass_fds=[theirs.fileno(), owner], start_new_session=True)
theirs.close()
answers = ours.makefile()
answers.readline()
program = {"name": "main", "argv": ["sh", "-c", "setsid sleep 1000 & sleep 1000"], "environment": {"PATH": os.environ["PATH"]},
           "log": folder + "/main.log", "folder": folder}
ours.sendall(json.dumps({"op": "start", "program": program}).encode() + b"\\n")
answers.readline()
time.sleep(0.5)
inner = json.load(open(folder + "/keeper.json"))["inner"]
print(open(f"/proc/{inner}/status").read().split("NSpid:")[1].split("\\n")[0].split()[-1], flush=True)
if how == "off":
    ours.sendall(b'{"op": "off"}\\n')
    process.wait(20)
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize("how", ["off", "die"])
@pytest.mark.parametrize("namespaces", [True, False])
def test_nothing_is_left_where_there_are_no_process_namespaces_either(tmp_path: Path, how: str, namespaces: bool) -> None:
    """As on a laptop without root rights: in a user namespace, with and without permission for a process namespace."""
    folder = tmp_path / "member"
    folder.mkdir()
    limit = "" if namespaces else "echo 0 > /proc/sys/user/max_pid_namespaces;"
    inside = [sys.executable, "-c", KEEP, str(KEEPER), str(folder), how]
    argv = ["unshare", "--map-root-user", "sh", "-c", f'{limit} exec "$@"', "sh", *inside]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout == "1\n") is namespaces
    until("every process is gone", lambda: not running_in(folder), GONE_SECONDS)
    if how == "die":
        until("the folder too", lambda: not folder.exists(), GONE_SECONDS)


def running_in(folder: Path) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(process)
    return found


# --- building ---

BUILD = """
import sys
from e2e.testbed import build
recipe = build.Recipe(sys.argv[2], sys.argv[1], "example.test/hello")
try:
    print(build.build([recipe]))
except build.Missing as missing:
    print(missing)
"""


@pytest.fixture
def hello(tmp_path: Path) -> Iterator[list[str]]:
    """The command that builds a program of two lines, in a cache of its own."""
    module = tmp_path / "hello"
    module.mkdir()
    (module / "go.mod").write_text("module example.test/hello\n\ngo 1.21\n", encoding="utf-8")
    (module / "main.go").write_text('package main\n\nfunc main() { println("hello") }\n', encoding="utf-8")
    go_cache = subprocess.run([go(), "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    command = ["env", f"XDG_CACHE_HOME={tmp_path}", f"GOCACHE={go_cache}", "KUBEBUILDER_ASSETS=", sys.executable, "-c", BUILD, str(module)]
    yield command


@pytest.mark.needs("go")
def test_of_two_builders_one_builds(hello: list[str], tmp_path: Path) -> None:
    target = tmp_path / "banyan-testbed" / f"kubernetes-{KUBERNETES}"
    target.mkdir(parents=True)
    (target / ".hello-abcd1234").write_bytes(b"half")  # of a builder that was killed
    builders = [subprocess.Popen([*hello, "hello"], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [builder.communicate(timeout=120)[0].splitlines()[-1] for builder in builders]
    assert sorted(printed) == ["0", "1"]
    assert sorted(path.name for path in target.iterdir()) == [".lock", "hello"]
    assert subprocess.run([target / "hello"], capture_output=True, text=True, check=True).stderr == "hello\n"


@pytest.mark.needs("go")
def test_what_does_not_compile_leaves_nothing_and_says_why(hello: list[str], tmp_path: Path) -> None:
    (tmp_path / "hello/main.go").write_text("package main\n\nfunc main() { nonsense }\n", encoding="utf-8")
    done = subprocess.run([*hello, "hello"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "hello could not be built" in done.stdout
    assert "nonsense" in done.stdout
    assert [path.name for path in (tmp_path / "banyan-testbed" / f"kubernetes-{KUBERNETES}").iterdir()] == [".lock"]


@pytest.mark.needs("go")
@pytest.mark.parametrize("altered", [False, True])
def test_sources_are_those_that_are_named_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    proxy = tmp_path / "example.test/forked/@v/v1.zip"
    proxy.parent.mkdir(parents=True)
    with zipfile.ZipFile(proxy, "w") as archive:
        archive.writestr("example.test/forked@v1/go.mod", "module example.test/hello\n")
    sources = build.Sources("example.test/forked", "v1", hashlib.sha256(proxy.read_bytes()).hexdigest())
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path},off")
    if altered:
        proxy.write_bytes(proxy.read_bytes() + b"x")
        with pytest.raises(Missing, match="is not what it was: its sha256 is"):
            build.fetch(sources)
        assert not sources.unpacked.exists()
        return
    assert (build.fetch(sources) / "go.mod").read_text(encoding="utf-8") == "module example.test/hello\n"
    proxy.unlink()
    assert build.fetch(sources) == sources.unpacked  # once
