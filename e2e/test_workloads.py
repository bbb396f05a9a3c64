"""What a component may ask of its site, tried as a user does: from the root, through a region, on a real process cluster."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.support import APPS, SITE_PROGRAM, Site, Tree, application, program, until

pytestmark = pytest.mark.needs("kubectl")

CORE = "/api/v1/namespaces/default"
BOTH = {"clusterSelector": {"matchLabels": {"tier": "edge"}}}


def create(root: Site, document: dict[str, Any], ready: int = 1) -> str:
    """Wait until it is ready; its name."""
    code, answer = root.ask("POST", APPS, document)
    assert code == 201, answer
    name = str(document["metadata"]["name"])
    if ready:
        until(f"{name} is ready", lambda: root.status(name).get("ready") == ready and root.status(name).get("updated") == ready)
    return name


def change(root: Site, name: str, **fields: Any) -> None:
    def tried() -> bool:
        document = root.get(f"{APPS}/{name}")
        document["spec"]["components"][0].update(fields)
        return root.ask("PUT", f"{APPS}/{name}", document)[0] == 200  # 409: a status came in between

    until(f"{name} is changed", tried)


def told(root: Site, name: str) -> dict[str, Any]:
    """What the program says of itself, asked through the root."""
    code, answer = root.ask("GET", f"{APPS}/{name}/proxy/")
    assert code == 200, answer
    assert isinstance(answer, dict), answer[:300]
    return answer


def pods(site: Site, name: str) -> list[dict[str, Any]]:
    return [pod for pod in site.get("/api/v1/pods")["items"] if pod["metadata"]["labels"]["banyan.dev/application"] == name]


def reason(root: Site, name: str) -> str:
    component = root.status(name)["components"][0]
    return f"{component.get('reason', '')}: {component.get('message', '')}"


def core(root: Site, kind: str, name: str, **body: Any) -> None:
    document = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}} | body
    code, answer = root.ask("POST", f"{CORE}/{kind.lower()}s", document)
    assert code == 201, answer


def test_config_and_secrets_reach_the_instance_roll_it_and_lie_nowhere_else(grove: Tree, tmp_path: Path) -> None:
    root = grove.sites["root"]
    core(root, "ConfigMap", "colours", data={"COLOUR": "green", "plain.conf": "level=1"})
    core(root, "Secret", "door", stringData={"PASSWORD": "first-hunter2"})
    document = program(
        "configured",
        env=[{"name": "LEVEL", "value": "info"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "door", "key": "PASSWORD"}}}],
        envFrom=[{"prefix": "CFG_", "configMapRef": {"name": "colours"}}],
        files=[
            {"path": "etc/plain.conf", "configMap": {"name": "colours", "key": "plain.conf"}},
            {"path": "keys", "secret": {"name": "door"}},
        ],
        expose={"port": 18101},
    )
    name = create(root, document)
    environment = told(root, name)["env"]
    assert (environment["LEVEL"], environment["KEY"], environment["CFG_COLOUR"]) == ("info", "first-hunter2", "green")
    assert root.ask("GET", f"{APPS}/{name}/proxy/file/etc/plain.conf") == (200, b"level=1")
    assert root.ask("GET", f"{APPS}/{name}/proxy/file/keys/PASSWORD") == (200, b"first-hunter2")
    root.kubectl("patch", "configmap", "colours", "-p", '{"data":{"COLOUR":"blue"}}')
    until("the change has rolled it", lambda: told(root, name)["env"]["CFG_COLOUR"] == "blue")
    root.kubectl("patch", "secret", "door", "-p", '{"stringData":{"PASSWORD":"second-hunter2"}}')
    until("so has the Secret's", lambda: told(root, name)["env"]["KEY"] == "second-hunter2")
    until("one instance is left", lambda: len(pods(grove.sites["edge-1"], name)) == 1)
    for site in ("root", "region-a", "edge-1", "edge-2"):
        for path in (*grove.sites[site].folder.glob("store.db*"), grove.folder / f"{site}.log"):
            for plain in (b"hunter2", b"aHVudGVyMg", b"Zmlyc3QtaHVudGVyMg", b"c2Vjb25kLWh1bnRlcjI"):
                assert plain not in path.read_bytes(), (path, plain)
    assert holds_secret(grove.sites["region-a"], tmp_path / "region-a")
    assert holds_secret(grove.sites["edge-1"], tmp_path / "edge-1")
    assert not holds_secret(grove.sites["edge-2"], tmp_path / "edge-2")


def holds_secret(site: Site, copy: Path) -> bool:
    """Whether its store has a Secret; read from a copy, for the controller keeps the file locked."""
    copy.mkdir(exist_ok=True)
    for path in site.folder.glob("store.db*"):
        shutil.copy(path, copy / path.name)
    with contextlib.closing(sqlite3.connect(copy / "store.db")) as database:
        return bool(database.execute("select count(*) from changes where kind = 'Secret'").fetchone()[0])


def test_what_is_missing_is_waited_for_by_name(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("waits", envFrom=[{"configMapRef": {"name": "later"}}]), ready=0)
    until("it says what it waits for", lambda: "waits for ConfigMap default/later" in str(root.status(name)["conditions"]))
    assert "ConfigMap default/later" in root.banyan("explain", name).stdout
    core(root, "ConfigMap", "later", data={"A": "1"})
    until("it goes on", lambda: root.status(name).get("ready") == 1)


def test_a_volume_survives_restarts_and_versions(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("keeps", volumes=[{"name": "data", "path": "data"}], expose={"port": 18102}))
    first = told(root, name)
    assert first["starts"] == 1
    os.kill(first["pid"], signal.SIGKILL)
    until("it was started again", lambda: told(root, name)["starts"] == 2)
    assert pods(grove.sites["edge-1"], name)[0]["status"]["containerStatuses"][0]["restartCount"] == 1
    change(root, name, env=[{"name": "VERSION", "value": "2"}])
    until("version 2 found it", lambda: told(root, name)["env"].get("VERSION") == "2" and told(root, name)["starts"] == 3)


def test_liveness_restarts_and_readiness_holds_back(grove: Tree) -> None:
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    probe = {"httpGet": {"path": "/health"}, "periodSeconds": 1, "failureThreshold": 1}
    name = create(root, program("lives", liveness=probe, expose={"port": 18103}))
    pid = told(root, name)["pid"]
    root.ask("GET", f"{APPS}/{name}/proxy/sick")
    until("it was killed and started again", lambda: told(root, name)["pid"] != pid)
    held = create(root, program("held", readiness=probe | {"httpGet": {"path": "/nowhere"}}, expose={"port": 18104}), ready=0)
    until("it runs", lambda: [pod["status"]["phase"] for pod in pods(edge, held)] == ["Running"])
    until("it is said why it is not ready", lambda: "404" in reason(root, held))
    assert root.status(held).get("ready", 0) == 0
    change(root, held, readiness=probe)
    until("it is ready", lambda: root.status(held).get("ready") == 1)
    test = {"exec": {"command": ["/bin/sh", "-c", "test -e data/starts"]}, "periodSeconds": 1}
    create(root, program("execs", readiness=test, liveness={"tcpSocket": {}, "periodSeconds": 1}, expose={"port": 18105}))


def test_a_command_that_fails_is_restarted_ever_more_slowly_and_says_why(grove: Tree) -> None:
    """What people ask first: is it looping, how often, with which code, and what did it say last. Everywhere they may look."""
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    script = r"echo starting; printf 'cannot open \033[31m/dev/ttyS9\033[0m\a\n'; exit 3"
    dying = {"name": "main", "command": ["/bin/sh", "-c", script], "takesSocket": False}
    name = create(root, application("dying", [dying], clusterName="edge-1"), ready=0)
    last = "its last log line: cannot open /dev/ttyS9"
    until("it backs off", lambda: reason(root, name).startswith("CrashLoopBackOff") and "after a pause of" in reason(root, name))
    assert f"it exited with code 3; {last}; restart " in reason(root, name)
    assert root.status(name)["phase"] == "Degraded"
    assert root.status(name)["clusters"][0]["reason"] == "CrashLoopBackOff"
    container = pods(edge, name)[0]["status"]["containerStatuses"][0]
    assert container["restartCount"] >= 3
    terminated = container["lastState"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"], terminated["message"]) == (3, "Error", f"it exited with code 3; {last}")
    until("the table says so", lambda: re.search(r"dying-main-\S+ +0/1 +CrashLoopBackOff +[3-9]", edge.kubectl("get", "pods")))
    described = edge.kubectl("describe", "pod", pods(edge, name)[0]["metadata"]["name"])
    for words in (r"Reason: +CrashLoopBackOff", r"Last State: +Terminated", r"Exit Code: +3", last):
        assert re.search(words, described), described
    assert last in root.kubectl("describe", "application", name)
    for command in ("explain", "status"):
        said = " ".join(root.banyan(command, f"application/{name}" if command == "explain" else name).stdout.split())
        assert "CrashLoopBackOff" in said, said
        assert "/dev/ttyS9" in said, said
    assert "starting" in root.banyan("logs", name).stdout
    absent = {"name": "main", "command": ["/no/such/program"], "takesSocket": False}
    name = create(root, application("absent", [absent], clusterName="edge-1"), ready=0)
    until("it is named", lambda: "/no/such/program: No such file" in reason(root, name))
    change(root, name, command=["/bin/sleep", "1000"])
    until("mended, it runs", lambda: root.status(name).get("ready") == 1)
    assert "No such file" not in str(pods(edge, name))


def test_a_memory_limit_holds_and_names_itself(grove: Tree) -> None:
    """Four times as much is touched as was asked for. It never gets that far, whichever mechanism this machine has."""
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    hungry = [sys.executable, "-c", "import os, time; print('eating', flush=True); hoard = os.urandom(256 << 20); time.sleep(1000)"]
    component = {"name": "main", "command": hungry, "takesSocket": False, "resources": {"memory": "64Mi"}}
    name = create(root, application("hungry", [component], clusterName="edge-1"), ready=0)
    until("it is stopped by its limit", lambda: "it used more than the 67108864 bytes of memory that it asked for" in reason(root, name))
    until("again and again", lambda: reason(root, name).startswith("CrashLoopBackOff: ") and "OOMKilled" in reason(root, name))
    terminated = pods(edge, name)[0]["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("OOMKilled", 137)


@pytest.mark.exact
def test_a_version_gets_requests_only_once_it_is_ready(grove: Tree) -> None:
    """Version 2 is never ready, version 3 crashes at its start, version 4 is good. A client asks all the time: 0 failed."""
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    probe = {"httpGet": {"path": "/health"}, "periodSeconds": 1, "failureThreshold": 2}
    name = create(root, program("careful", readiness=probe, env=[{"name": "VERSION", "value": "1"}], expose={"port": 18107}))
    first = told(root, name)["pid"]
    with asking(f"http://{edge.environment['BANYAN_SITE_BIND']}:18107/") as answers:
        change(root, name, env=[{"name": "VERSION", "value": "2"}], readiness=probe | {"httpGet": {"path": "/nowhere"}})
        until("2 is said not to be ready", lambda: reason(root, name).startswith("NotReady") and "404" in reason(root, name))
        status = root.status(name)
        assert (status["phase"], status["ready"], status.get("updated", 0)) == ("Degraded", 1, 0)
        change(root, name, env=[{"name": "VERSION", "value": "3"}], readiness=probe, command=["/bin/sh", "-c", "echo no config; exit 4"])
        until("3 is said to crash", lambda: reason(root, name).startswith("CrashLoopBackOff") and "no config" in reason(root, name))
        assert root.status(name)["phase"] == "Degraded"
        assert told(root, name)["pid"] == first
        command = [sys.executable, str(SITE_PROGRAM)]
        change(root, name, env=[{"name": "VERSION", "value": "4"}], command=command)
        until("4 runs", lambda: root.status(name).get("updated") == 1 and len(pods(edge, name)) == 1)
        assert told(root, name)["env"]["VERSION"] == "4"
        until("the client has heard of it", lambda: "4" in answers)
    assert set(answers) == {"1", "4"}, answers
    assert answers["1"] > 100


@contextlib.contextmanager
def asking(url: str) -> Iterator[Counter[str]]:
    """A client that asks all the time, on a new connection each time: how often which version answered, or what failed."""
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    answers[json.load(answer)["env"]["VERSION"]] += 1
            except (OSError, ValueError) as error:
                answers[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.exact
def test_replicas_share_the_socket_and_are_swapped_one_by_one(grove: Tree) -> None:
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    name = create(root, program("shared", replicas=3, expose={"port": 18106}), ready=3)
    pids = {told(root, name)["pid"] for _ in range(60)}
    assert 1 < len(pids) <= 3
    change(root, name, env=[{"name": "VERSION", "value": "2"}])
    asked = 0

    def swapped() -> bool:
        nonlocal asked
        asked += 1
        told(root, name)  # never fails while it is swapped
        return root.status(name).get("updated") == 3 and len(pods(edge, name)) == 3

    until("all are swapped", swapped)
    assert asked > 3
    assert {told(root, name)["env"].get("VERSION") for _ in range(20)} == {"2"}


@pytest.mark.exact
def test_a_command_without_a_socket_stops_before_it_starts_anew(grove: Tree) -> None:
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    marks = grove.folder / "alone"
    # Fails when another of it runs at the same time: a file that must not be there.
    script = f"set -C; : > {marks} || exit 9; trap 'rm {marks}; exit 0' TERM; while :; do sleep 0.1; done"
    component = {"name": "main", "command": ["/bin/sh", "-c", script], "takesSocket": False, "replicas": 2}
    name = create(root, application("alone", [component], clusterName="edge-1"))
    assert "one replica per site" in root.banyan("explain", name).stdout
    assert root.status(name)["unplaced"] == 1
    change(root, name, env=[{"name": "VERSION", "value": "2"}])
    until(
        "version 2 runs",
        lambda: root.status(name).get("updated") == 1 and root.status(name).get("ready") == 1 and len(pods(edge, name)) == 1,
    )
    assert pods(edge, name)[0]["status"]["containerStatuses"][0].get("restartCount", 0) == 0
    assert Path(marks).exists()
