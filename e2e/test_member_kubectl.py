"""An unmodified kubectl on a member behind NAT, through root → region → edge: every verb, both ways to stream, and what may go wrong."""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_shim.kubernetes.rights import ROLES
from e2e.far import EDGE, WEB, Far, port_of, terminal
from e2e.place import config_map, manifests
from e2e.support import APPS, ROOT, application, growing, until
from e2e.testbed import Member
from e2e.testbed.machine import MachineError

pytestmark = pytest.mark.needs("kubectl")
SPDY = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
WAYS = pytest.mark.parametrize("way", [{}, SPDY], ids=["websocket", "spdy"])


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


def test_a_context_from_any_controller_above(far: Far, tmp_path: Path) -> None:
    far.region.banyan("kubeconfig", EDGE, "--write", str(tmp_path / "config"))
    assert "web-" in far.kubectl("get", "pods", kubeconfig=tmp_path / "config")


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
        # The terminal's size travels beside what is typed.
        shell.say(b"until stty size 2>&1 | grep -q 33; do sleep 0.1; done; stty size; echo $((6 * 7))-$0\n")
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
    ids: list[list[str]] = []
    for where, end in (("entry", "entry"), ("member", "member")):
        lines = [line for line in far.audit(where) if line["user"] == "vic" and line["path"] == "/api/v1/namespaces/default/pods"]
        assert [line["code"] for line in lines] == [403, 200]
        assert {line["end"] for line in lines} == {end}
        ids.append([line["id"] for line in lines])
    assert ids[0] == ids[1]
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
    before = len(far.audit("member"))

    def lines(stage: str) -> set[str]:
        return {line["id"] for line in far.audit("member")[before:] if line["stage"] == stage}

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(far.running(*arguments)) for arguments in LASTING]
        until("all of them are served", lambda: all(count >= base[name] + len(LASTING) for name, count in far.streams().items()))
        until("each has begun at the member", lambda: len(lines("begun")) == len(LASTING))
        for process in running:
            process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        until("every hop has let go", lambda: far.streams() == base, FREE_SECONDS)
        until("all of them have ended at the member", lambda: lines("begun") <= lines("ended"), FREE_SECONDS)
        print(f"\nfree again after {time.monotonic() - killed:.1f} s")
    assert len(lines("begun")) == len(LASTING)


FREE_SECONDS = 5.0  # a promise, not a patience
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


SHOUT = "while true; do echo 0123456789012345678901234567890123456789; done"
ECHOES = 30
SLOWER_SECONDS = 0.050  # a shell's echo may take so much longer than on an idle way
GROWN_BYTES = 48 << 20  # of any controller on the way


def echo_seconds(far: Far) -> float:
    """How long a shell takes to echo what is typed: the median of many."""
    found = []
    with terminal(far.argv("exec", "-it", "deploy/web", "--", "sh"), far.environment()) as shell:
        for number in range(ECHOES + 1):
            typed = time.monotonic()
            shell.say(b"echo $((%d * 1000))\n" % (number + 7))
            shell.hear(b"\n%d000" % (number + 7))
            found.append(time.monotonic() - typed)
    return statistics.median(found[1:])  # the first waits for the shell itself


@contextlib.contextmanager
def shouting(far: Far) -> Iterator[None]:
    """Commands that print without end, over both protocols, and nobody reads."""
    command = ("exec", "deploy/web", "--", "sh", "-c", SHOUT)
    with far.running(*command) as one, far.running(*command, **SPDY) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.read(1000)
        yield


@contextlib.contextmanager
def flooding(far: Far) -> Iterator[None]:
    """`logs -f` of a pod that never falls silent, and nobody reads."""
    far.kubectl("run", "shouter", "--image=busybox:testbed", "--restart=Never", "--", "sh", "-c", SHOUT)
    far.kubectl("wait", "pod/shouter", "--for=condition=Ready", "--timeout=60s")
    with far.running("logs", "-f", "shouter") as process:
        assert process.stdout is not None
        assert process.stdout.read(1000)
        yield
    far.kubectl("delete", "pod", "shouter", "--now", "--wait=false")


@contextlib.contextmanager
def downloading(far: Far) -> Iterator[None]:
    """1 GiB over a forwarded port, which comes whole, and is still coming when the shell was heard."""
    with far.running("port-forward", "deploy/web", ":8080") as process, ThreadPoolExecutor(1) as pool:
        connection = socket.create_connection(("127.0.0.1", port_of(process)), 60)
        with connection:
            connection.sendall(b"GET /huge HTTP/1.0\r\n\r\n")
            received = pool.submit(lambda: sum(map(len, iter(lambda: connection.recv(1 << 20), b""))))
            yield
            assert not received.done(), "the download was over before the shell was: nothing was measured"
            assert received.result(180) > 1 << 30


@pytest.mark.parametrize("burden", [shouting, flooding, downloading])
def test_a_shell_answers_beside_what_carries_much(far: Far, burden: Callable[[Far], contextlib.AbstractContextManager[None]]) -> None:
    """Credit all the way: nothing grows where nobody reads, no link is lost, and what is made meanwhile still comes through."""
    losses = far.losses()
    idle = echo_seconds(far)
    before = far.memory()
    with burden(far):
        beside = echo_seconds(far)
        name = f"beside-{burden.__name__}"
        component = manifests(config_map(name), name="main")
        code, answer = far.root.ask("POST", APPS, application(name, [component], clusterName=EDGE))
        assert code == 201, answer
        until("sync goes on", lambda: far.root.status(name).get("ready") == 1)
        grown = {name: size - before[name] for name, size in far.memory().items()}
    print(f"\n{burden.__name__}: echo {idle * 1000:.1f} ms idle, {beside * 1000:.1f} ms beside; grown {grown}")
    far.root.kubectl("delete", "application", name)
    assert all(size < GROWN_BYTES for size in grown.values()), grown
    assert far.losses() == losses
    assert beside <= idle + SLOWER_SECONDS


def test_a_link_that_breaks_ends_what_is_open(far: Far) -> None:
    before = len(far.audit("entry"))
    with far.running("exec", "-i", "deploy/web", "--", "cat") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"echo\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"echo\n"
        (begun,) = [line for line in far.audit("entry")[before:] if line["path"].endswith("/exec") and line["stage"] == "begun"]
        far.member.cut_uplink()
        try:
            assert process.wait(60) != 0
            said = process.stdout.read().decode()
            print(f"\nkubectl says: {said}")
            assert "error" in said.lower()
            (ended,) = [line for line in far.audit("entry") if line["id"] == begun["id"] and line["stage"] == "ended"]
            assert "silent" in ended["reason"] or "lost" in ended["reason"] or "reach" in ended["reason"], ended
            answer = far.kubectl("get", "pods", check=False)
            assert "edge-k8s" in answer
            assert "out of reach" in answer or "ServiceUnavailable" in answer
        finally:
            far.member.heal_uplink()
    until("it is in reach again", lambda: "web-" in far.kubectl("get", "pods", check=False))


def test_the_sites_answer_stands_offline(far: Far) -> None:
    """At the member's own controller, with the uplink cut: whom the site lets in comes in, and nobody else."""
    path = f"/apis/banyan.dev/v1alpha1/clusters/{EDGE}/proxy/api/v1/namespaces/default"
    guest = far.data / "guest.kubeconfig"
    far.at_site("user", "create", "guest", "--group", "view", "--kubeconfig-out", str(guest))
    far.member.cut_uplink()
    try:
        assert ask_at_site(far, far.data / "admin.kubeconfig", path)["metadata"]["name"] == "default"
        refused = ask_at_site(far, guest, path)
    finally:
        far.member.heal_uplink()
    assert (refused["code"], refused["reason"]) == (403, "Forbidden")
    assert "guest may not use the cluster API of edge-k8s: its site lets in banyan:admin" in refused["message"]
    lines = [line for line in far.audit("member") if line["path"] == "/api/v1/namespaces/default"][-2:]
    assert [(line["end"], line["user"], line["code"]) for line in lines] == [("both", "admin", 200), ("both", "guest", 403)]
    until("it is in reach again", lambda: "web-" in far.kubectl("get", "pods", check=False))


def ask_at_site(far: Far, kubeconfig: Path, path: str) -> dict[str, Any]:
    text = far.member.machine.run([sys.executable, "-c", AT_SITE, str(ROOT), str(kubeconfig), path])
    answer: dict[str, Any] = json.loads(text)
    return answer


AT_SITE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from banyanctl.client import Client
from banyanctl.endpoint import read
with Client(read(Path(sys.argv[2])), 30.0) as client:
    print(client.request("GET", sys.argv[3]).body.decode())
"""
