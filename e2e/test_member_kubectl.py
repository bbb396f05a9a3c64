"""An unmodified kubectl on a member behind NAT, through root → region → edge: every verb, both ways to stream, and what may go wrong.

The member is a real cluster with a real node in a network of its own; its controller runs there, beside it, and dials out.
"""

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_shim.kubernetes.rights import ROLES
from e2e.support import ROOT, Tree, growing, until
from e2e.testbed import Member
from e2e.testbed.machine import MachineError
from tools import needs

pytestmark = pytest.mark.needs("kubectl")
EDGE = "edge-k8s"
JOIN_SECONDS = 180.0  # a controller that starts beside a whole cluster on a busy machine
WEB = "echo started; mkdir -p /www; hostname > /www/index.html; head -c 20000000 /dev/zero > /www/big; exec httpd -f -p 8080 -h /www"
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
WAYS = pytest.mark.parametrize("way", [{}, SPDY], ids=["websocket", "spdy"])


class Far:
    """root, region, and a member at a site of its own."""

    def __init__(self, tree: Tree, member: Member) -> None:
        self.tree = tree
        self.member = member
        self.root = tree.root()
        self.region = tree.site("region-a", BANYAN_HEARTBEAT_SECONDS="2")
        self.region.join(self.root.token(), "--tunnel-listen", f"{member.wan_host}:0", "--shim", "none")
        self.region.wait()
        self.data = member.folder / "edge-controller"
        self.run_edge("join", self.region.token(), "--name", EDGE, "--api-listen", "127.0.0.1:0", "--tunnel-listen", "",
                      "--shim", "kubernetes", "--kubeconfig", str(member.site_kubeconfig))  # fmt: skip
        until(f"{EDGE} is Ready", self.is_ready, JOIN_SECONDS)
        self.kubeconfig = tree.folder / "edge.kubeconfig"
        self.root.banyan("kubeconfig", EDGE, "--write", str(self.kubeconfig))

    def run_edge(self, *arguments: str) -> None:
        argv = [sys.executable, "-m", "banyanctl", "--data", str(self.data), *arguments]
        environment = {"PYTHONPATH": str(ROOT), "BANYAN_LOG_FORMAT": "human", "BANYAN_HEARTBEAT_SECONDS": "2"}
        self.member.run_at_site("edge", argv, environment)

    def is_ready(self) -> bool:
        status = self.root.clusters().get(EDGE, {})
        return bool(status.get("phase") == "Ready" and status.get("facts", {}).get("shim"))

    # --- programs ---

    def at_site(self, *arguments: str, stdin: str | None = None) -> str:
        """`banyan` at the member's own controller, on its own machine."""
        return self.member.machine.run([sys.executable, "-m", "banyanctl", "--data", str(self.data), *arguments], stdin=stdin)

    def argv(self, *arguments: str, kubeconfig: Path | None = None) -> list[str]:
        return [str(needs.kubectl()), "--kubeconfig", str(kubeconfig or self.kubeconfig), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return kept | {"HOME": str(self.tree.folder)} | more

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None, **more: str) -> str:
        done = subprocess.run(
            self.argv(*arguments, kubeconfig=kubeconfig), capture_output=True, text=True, input=stdin, timeout=90, check=False,
            env=self.environment(**more),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """kubectl in the background, with its output in a pipe that nobody need read."""
        process = subprocess.Popen(
            self.argv(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment(**more)
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    # --- what is seen ---

    def streams(self) -> dict[str, float]:
        """Open streams at each hop, by the controller that counts and its peer."""
        found = {}
        texts = {site.name: str(site.ask("GET", "/metrics")[1], "utf-8") for site in (self.root, self.region)}
        texts[EDGE] = str(self.of_edge("/metrics"), "utf-8")
        for name, text in texts.items():
            for peer, count in re.findall(r'banyan_link_streams\{peer="([^"]+)"\} ([0-9.]+)', text):
                found[f"{name}-{peer}"] = float(count)
        return found

    def of_edge(self, path: str) -> bytes:
        """The member's controller's own API, from the root."""
        code, answer = self.root.ask("GET", f"/apis/banyan.dev/v1alpha1/clusters/{EDGE}/banyan{path}")
        assert code == 200, answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def audit(self, where: str) -> list[dict[str, Any]]:
        path = (self.root.folder if where == "entry" else self.data) / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines() if line]

    def pod(self) -> str:
        return self.kubectl(
            "get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}"
        )

    def memory(self) -> dict[str, int]:
        """Resident bytes of every controller on the way."""
        assert self.root.process is not None and self.region.process is not None
        pids = {"root": self.root.process.pid, "region": self.region.process.pid, EDGE: self.member.machine.host_pid("edge")}
        return {name: _resident(pid) for name, pid in pids.items()}


def port_of(process: subprocess.Popen[bytes]) -> int:
    """The local port that kubectl says it listens on, whatever warnings it prints before."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(rb"127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    pytest.fail("kubectl ended without a port")


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


@pytest.fixture(scope="module")
def far(whole_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with growing(tmp_path_factory.mktemp("far")) as tree:
        made = None
        try:
            made = Far(tree, whole_member)
            denied = made.kubectl("get", "pods", check=False)
            for group, role in ROLES.items():
                whole_member.kubectl("create", "clusterrolebinding", group.replace(":", "-"), f"--clusterrole={role}", f"--group={group}")
            assert "kubectl create clusterrolebinding banyan-admin --clusterrole=cluster-admin --group=banyan:admin" in denied
            until("the binding counts", lambda: "forbidden" not in made.kubectl("get", "pods", check=False))
            made.kubectl("create", "deployment", "web", "--image=busybox:testbed", "--", "sh", "-c", WEB)
            made.kubectl("rollout", "status", "deployment/web", "--timeout=80s")
            yield made
        finally:
            with contextlib.suppress(MachineError):
                whole_member.heal_uplink()
            for group in ROLES:
                whole_member.kubectl("delete", "clusterrolebinding", group.replace(":", "-"), "--ignore-not-found", check=False)
            whole_member.kubectl("delete", "deployment", "web", "--ignore-not-found", "--wait=false", check=False)
            whole_member.machine.stop("edge")


# --- documents ---


def test_the_member_itself_answers(far: Far) -> None:
    whoami = json.loads(far.kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]
    assert (whoami["username"], whoami["extra"]["person"]) == ("banyan", ["admin"])
    assert set(whoami["groups"]) == {"banyan:admin", "system:authenticated"}
    assert f"v{far.member.shape.version.removeprefix('v')}" in far.kubectl("version")
    assert "replicasets" in far.kubectl("api-resources", "--api-group=apps")
    assert "ephemeralContainers" in far.kubectl("explain", "pod.spec")
    assert far.kubectl("get", "nodes", "-o", "name") == far.member.kubectl("get", "nodes", "-o", "name")


def test_apply_both_ways_and_a_watch_that_hears_of_it(far: Far) -> None:
    document: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "word"}, "data": {"a": "1"}}
    with far.running("get", "configmaps", "--watch", "-o", "name") as watch:
        assert watch.stdout is not None
        assert b"configmap/" in watch.stdout.readline()
        assert "created" in far.kubectl("apply", "-f", "-", stdin=json.dumps(document))
        while b"configmap/word" not in (line := watch.stdout.readline()):
            assert line, "the watch ended"
    document["data"]["a"] = "2"
    assert "configured" in far.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    document["data"] = {"b": "3"}
    assert "serverside-applied" in far.kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=json.dumps(document))
    data = json.loads(far.member.kubectl("get", "configmap", "word", "-o", "json"))["data"]
    assert data == {"b": "3"}  # kubectl hands over to a server-side apply what its client-side apply owned
    far.kubectl("delete", "configmap", "word")


def test_other_programs(far: Far, tmp_path: Path) -> None:
    """helm, and the Python client, with the same kubeconfig."""
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 1.0.0\n")
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-made"}, "data": {"by": "helm"}}
    (chart / "templates" / "made.yaml").write_text(yaml.safe_dump(made).replace("'", ""))
    helm = [str(Path(sys.executable).parent / "helm"), "--kubeconfig", str(far.kubeconfig)]
    for arguments in (["install", "one", str(chart)], ["list", "-q"], ["uninstall", "one"]):
        done = subprocess.run([*helm, *arguments], capture_output=True, text=True, timeout=90, check=False, env=far.environment())
        assert done.returncode == 0, done.stderr
        assert "one" in done.stdout
        if arguments[0] == "list":
            assert far.member.kubectl("get", "configmap", "one-made", "-o", "jsonpath={.data.by}") == "helm"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PYTHON, str(far.kubeconfig), far.pod()], capture_output=True, text=True, timeout=90,
        check=False, env=far.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["web", "ADDED", "started", "said"]


PYTHON = """
import sys
from kubernetes import client, config, watch
from kubernetes.stream import stream
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
print(client.AppsV1Api().read_namespaced_deployment("web", "default").metadata.name)
for event in watch.Watch().stream(core.list_namespaced_pod, "default", label_selector="app=web", timeout_seconds=20):
    print(event["type"])
    break
print(core.read_namespaced_pod_log(sys.argv[2], "default").strip())
print(stream(core.connect_get_namespaced_pod_exec, sys.argv[2], "default", command=["echo", "said"], stdout=True, stderr=True).strip())
"""


# --- streams ---


@WAYS
def test_commands_run_and_files_are_copied(far: Far, way: dict[str, str], tmp_path: Path) -> None:
    assert far.kubectl("logs", "deploy/web").splitlines() == ["started"]
    assert far.kubectl("exec", "deploy/web", "--", "cat", "/www/index.html", **way).startswith("web-")
    assert (
        far.kubectl("exec", "-i", "deploy/web", "--", "sh", "-c", "read word; echo $word-$word", stdin="twice\n", **way) == "twice-twice\n"
    )
    assert "exit code 7" in far.kubectl("exec", "deploy/web", "--", "sh", "-c", "exit 7", check=False, **way)
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(1_000_000))
    pod = far.pod()
    far.kubectl("cp", str(sent), f"{pod}:/tmp/there", **way)
    far.kubectl("cp", f"{pod}:/tmp/there", str(tmp_path / "back"), **way)
    assert (tmp_path / "back").read_bytes() == sent.read_bytes()


@WAYS
def test_a_shell_on_a_terminal(far: Far, way: dict[str, str]) -> None:
    with terminal(far.argv("exec", "-it", "deploy/web", "--", "sh"), far.environment(**way)) as shell:
        shell.say(b"stty size; echo $((6 * 7))-$0\n")
        assert b"42-sh" in shell.hear(b"42-sh")
        assert b"33 77" in shell.heard
        shell.say(b"exit 0\n")
        assert shell.ended() == 0


def test_attach_and_debug(far: Far) -> None:
    far.kubectl(
        "run", "talker", "--image=busybox:testbed", "-i", "--restart=Never", "--", "sh", "-c", "read w; echo heard $w", stdin="me\n"
    )
    assert "heard me" in far.kubectl("logs", "talker")
    far.kubectl("delete", "pod", "talker", "--now")
    pod = far.pod()
    far.kubectl("debug", pod, "--image=busybox:testbed", "--image-pull-policy=Never", "-c", "probe", "--", "sh", "-c", "echo probed")
    until("the probe has spoken", lambda: "probed" in far.kubectl("logs", pod, "-c", "probe", check=False))


@WAYS
def test_ports_are_forwarded(far: Far, way: dict[str, str]) -> None:
    with far.running("port-forward", "deploy/web", ":8080", **way) as process:
        port = port_of(process)
        for path, length in (("index.html", 10), ("big", 20_000_000)):
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
                received = b"".join(iter(lambda c=connection: c.recv(1 << 20), b""))  # type: ignore[misc]
            assert b" 200 OK" in received[:100]
            assert len(received) >= length


def test_a_local_proxy(far: Far) -> None:
    with far.running("proxy", "--port=0", "--append-server-path") as process:
        port = port_of(process)
        url = f"http://127.0.0.1:{port}/api/v1/namespaces/default/pods/{far.pod()}:8080/proxy/index.html"
        done = subprocess.run(["curl", "-s", "--noproxy", "*", url], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith("web-"), done.stdout


def test_a_node_is_drained(far: Far) -> None:
    (node,) = far.member.ready_nodes()
    before = far.pod()
    try:
        assert "drained" in far.kubectl("drain", node, "--pod-selector=app=web", "--timeout=60s", "--grace-period=1")
    finally:
        far.kubectl("uncordon", node)
    far.kubectl("rollout", "status", "deployment/web", "--timeout=80s")
    assert far.pod() != before


# --- who may, and who did ---


def test_the_sites_own_policy_decides_and_both_ends_remember(far: Far, tmp_path: Path) -> None:
    vic = tmp_path / "vic.kubeconfig"
    far.root.banyan("user", "create", "vic", "--group", "view", "--kubeconfig-out", str(vic))
    with contextlib.ExitStack() as undo:
        document = yaml.safe_load(vic.read_text())
        document["clusters"][0]["cluster"]["server"] += f"/apis/banyan.dev/v1alpha1/clusters/{EDGE}/proxy"
        vic.write_text(json.dumps(document))
        refused = far.kubectl("get", "pods", check=False, kubeconfig=vic)
        assert "vic may not use the cluster API of edge-k8s: its site lets in banyan:admin" in refused
        policy = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "site"}, "spec": {"entry": {}}}
        policy["spec"] = {"entry": {"groups": ["banyan:admin"], "users": ["vic"]}}
        above = far.root.banyan("--at", EDGE, "apply", "-f", "-", stdin=json.dumps(policy), check=False)
        assert above.returncode != 0
        assert "written at edge-k8s alone" in above.stderr + above.stdout
        far.at_site("apply", "-f", "-", stdin=json.dumps(policy))
        undo.callback(far.at_site, "delete", "sitepolicy", "site")
        assert "web-" in far.kubectl("get", "pods", kubeconfig=vic)
        assert 'User "banyan" cannot delete' in far.kubectl("delete", "deployment", "web", check=False, kubeconfig=vic)
    for where, end in (("entry", "entry"), ("member", "member")):
        lines = [line for line in far.audit(where) if line["user"] == "vic" and line["path"] == "/api/v1/namespaces/default/pods"]
        assert [line["code"] for line in lines] == [403, 200]
        assert {line["end"] for line in lines} == {end}
    assert "vic" not in far.kubectl("get", "pods", "--as=vic", check=False).replace("impersonation (kubectl --as)", "")
    log = far.member.audit_log.read_text()
    (deleted,) = [json.loads(line) for line in log.splitlines() if '"vic"' in line and '"verb":"delete"' in line][:1]
    assert deleted["impersonatedUser"]["username"] == "banyan"
    assert deleted["impersonatedUser"]["extra"] == {"person": ["vic"]}
    assert deleted["responseStatus"]["code"] == 403


def test_a_cluster_without_an_api_says_what_to_use(far: Far, tmp_path: Path) -> None:
    config = yaml.safe_load(far.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = config["clusters"][0]["cluster"]["server"].replace(EDGE, "region-a")
    (tmp_path / "region").write_text(json.dumps(config))
    # While kubectl asks what there is, it shows the words of a refusal at this verbosity only; `banyan kubeconfig` refuses before that.
    answer = far.kubectl("get", "pods", "-v=8", check=False, kubeconfig=tmp_path / "region")
    assert "region-a has no cluster of its own" in answer
    assert far.root.banyan("kubeconfig", "region-a", check=False).returncode == 2


# --- what goes wrong ---


def test_a_client_that_vanishes_frees_everything(far: Far) -> None:
    base = until("all is quiet", partial(_quiet, far))
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(far.running(*arguments)) for arguments in LASTING]
        until("all of them are served", lambda: all(count >= base[name] + len(LASTING) for name, count in far.streams().items()))
        for process in running:
            process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until("every hop has let go", lambda: far.streams() == base)
        print(f"\nfree again after {time.monotonic() - killed:.1f} s")
    ended = [line for line in far.audit("member") if line["stage"] == "ended" and line["path"].endswith(("/exec", "/portforward", "/log"))]
    assert len(ended) >= len(LASTING) - 1


LASTING = (
    ("exec", "-i", "deploy/web", "--", "cat"),
    ("logs", "-f", "deploy/web"),
    ("get", "pods", "--watch"),
)


def _quiet(far: Far) -> dict[str, float]:
    """What is open for the tree's own sake (sync), once nothing of an earlier test is left."""
    first = far.streams()
    time.sleep(0.5)
    return first if far.streams() == first and all(count <= 4 for count in first.values()) else {}


def test_nobody_reads_and_nothing_grows(far: Far) -> None:
    """Endless output that is not read, twice, beside a shell that still answers."""
    before = far.memory()
    shout = ("exec", "deploy/web", "--", "sh", "-c", "while true; do echo 0123456789012345678901234567890123456789; done")
    with far.running(*shout) as one, far.running(*shout, **SPDY):
        assert one.stdout is not None
        assert one.stdout.read(1000)
        with terminal(far.argv("exec", "-it", "deploy/web", "--", "sh"), far.environment()) as shell:
            for number in range(20):
                shell.say(b"echo $((%d * 1000))\n" % (number + 7))
                shell.hear(b"\n%d000" % (number + 7))
        grown = {name: size - before[name] for name, size in far.memory().items()}
    assert all(size < 48 << 20 for size in grown.values()), grown


def test_a_link_that_breaks_ends_what_is_open(far: Far) -> None:
    with far.running("exec", "-i", "deploy/web", "--", "cat") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"echo\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"echo\n"
        far.member.cut_uplink()
        try:
            assert process.wait(60) != 0
            ended = [line for line in far.audit("entry") if line["path"].endswith("/exec") and line["stage"] == "ended"]
            assert ended[-1]["reason"]
            answer = far.kubectl("get", "pods", check=False)
            assert "edge-k8s" in answer
            assert "out of reach" in answer or "ServiceUnavailable" in answer
        finally:
            far.member.heal_uplink()
    until("it is in reach again", lambda: "web-" in far.kubectl("get", "pods", check=False))


class Terminal:
    """What stands before a screen: types, and looks at what comes."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self.heard = b""

    def say(self, data: bytes) -> None:
        os.write(self._descriptor, data)

    def hear(self, mark: bytes, seconds: float = 60.0) -> bytes:
        deadline = time.monotonic() + seconds
        while mark not in self.heard.replace(b"\r", b""):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{mark!r} did not come: {self.heard[-300:]!r}"
            self.heard += os.read(self._descriptor, 65536)
        return self.heard

    def ended(self, seconds: float = 60.0) -> int:
        return self._process.wait(seconds)


@contextlib.contextmanager
def terminal(argv: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=theirs, check=True)
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_site_itself_asks_the_same_way(far: Far) -> None:
    """At the member's own controller, as when the uplink is down."""
    path = f"/apis/banyan.dev/v1alpha1/clusters/{EDGE}/proxy/api/v1/namespaces/default"
    text = far.member.machine.run([sys.executable, "-c", AT_SITE, str(ROOT), str(far.data), path])
    assert json.loads(text)["metadata"]["name"] == "default"
    assert [line["end"] for line in far.audit("member") if line["path"] == "/api/v1/namespaces/default"][-1:] == ["both"]


AT_SITE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from banyanctl.client import Client
from banyanctl.endpoint import read
with Client(read(Path(sys.argv[2]) / "admin.kubeconfig"), 30.0) as client:
    print(client.request("GET", sys.argv[3]).body.decode())
"""
