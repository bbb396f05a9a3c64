"""The resource API against real processes: what a user creates, changes, takes back and deletes, and what is refused on the way."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from banyanctl.client import Client
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from e2e.support import APPS, Site, Tree, program, publish, until
from e2e.test_workloads import change, create, pods
from tests.banyanctl.test_commands import COMMANDS
from tools import needs

pytestmark = pytest.mark.needs("kubectl")

CORE = "/api/v1/namespaces/default"


def test_a_finalizer_holds_what_is_deleted_until_it_is_taken_away(grove: Tree) -> None:
    root = grove.sites["root"]
    document = program("held")
    document["metadata"]["finalizers"] = ["example.com/hold"]
    create(root, document)
    root.kubectl("delete", "app", "held", "--wait=false")
    held = root.get(f"{APPS}/held")
    assert held["metadata"]["deletionTimestamp"]
    assert "example.com/hold" in held["metadata"]["finalizers"]
    until("it says so", lambda: "Running,DeletionWaits" in root.kubectl("get", "app", "held"))
    waits = next(one for one in root.status("held")["conditions"] if one["type"] == "Withdrawing")
    assert (waits["status"], "waits for finalizer example.com/hold" in waits["message"]) == ("False", True)
    assert not root.status("held").get("withdrawing")
    assert len(pods(grove.sites["edge-1"], "held")) == 1  # as a Deployment's pods, until its deletion is allowed
    root.kubectl("patch", "app", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
    until("it goes", lambda: root.ask("GET", f"{APPS}/held")[0] == 404)
    until("so does its instance", lambda: pods(grove.sites["edge-1"], "held") == [])


def test_generated_names_and_dry_runs(grove: Tree) -> None:
    root = grove.sites["root"]
    document = program("")
    document["metadata"] = {"generateName": "batch-"}
    names = {root.ask("POST", APPS, document)[1]["metadata"]["name"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("batch-") for name in names)
    code, answer = root.ask("POST", f"{APPS}?dryRun=All", program("dry"))
    assert (code, answer["metadata"]["name"]) == (201, "dry")
    assert root.ask("GET", f"{APPS}/dry")[0] == 404
    assert "dry run" in root.kubectl("delete", "app", *names, "--dry-run=server")
    assert all(root.ask("GET", f"{APPS}/{name}")[0] == 200 for name in names)


def test_history_and_undo(grove: Tree) -> None:
    root = grove.sites["root"]
    name = create(root, program("undone", env=[{"name": "VERSION", "value": "1"}], expose={"port": 18301}))

    def version() -> str:
        return str(root.ask("GET", f"{APPS}/{name}/proxy/")[1].get("env", {}).get("VERSION"))

    def well() -> list[bool]:
        return [row["healthy"] for row in json.loads(root.banyan("history", name, "-o", "json").stdout)["items"]]

    change(root, name, env=[{"name": "VERSION", "value": "2"}])
    until("the second was well", lambda: well()[-1] and version() == "2")
    change(root, name, env=[{"name": "VERSION", "value": "3"}])
    rows = json.loads(root.banyan("history", name, "-o", "json").stdout)["items"]
    assert (rows[0]["revision"], rows[0]["cause"], rows[0]["user"]) == (1, "created", "admin")
    assert len(rows) == 3
    root.banyan("undo", name)
    assert root.get(f"{APPS}/{name}")["spec"]["components"][0]["env"][0]["value"] == "2"
    root.banyan("undo", name, "--to", "1")
    until("the first runs again", lambda: version() == "1")
    refused = root.banyan("undo", name, "--to", "99", check=False)
    assert refused.returncode == 3
    assert "99" in refused.stderr


def test_a_stale_version_is_refused_and_changes_nothing(grove: Tree) -> None:
    root = grove.sites["root"]
    code, first = root.ask("POST", f"{CORE}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stale"}})
    assert code == 201
    assert root.ask("PUT", f"{CORE}/configmaps/stale", first | {"data": {"by": "one"}})[0] == 200
    code, answer = root.ask("PUT", f"{CORE}/configmaps/stale", first | {"data": {"by": "another"}})
    assert (code, answer["reason"]) == (409, "Conflict")
    assert root.get(f"{CORE}/configmaps/stale")["data"] == {"by": "one"}


def test_documents_too_large_or_too_deep_cost_little_and_the_rest_goes_on(grove: Tree) -> None:
    root = grove.sites["root"]
    large = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"}, "data": {"k": "x" * (2 << 20)}}
    code, answer = root.ask("POST", f"{CORE}/configmaps", large)
    assert code == 413, answer
    assert "bytes" in answer["message"]
    with Client(read(root.folder / ADMIN_KUBECONFIG)) as client:
        for body in (b"[" * 100_000, b'{"a":' * 100_000, b'{"metadata":{"name":"\xff"}}', b"{", b"[]", b'"x"', b"null"):
            answer = client.request("POST", f"{CORE}/configmaps", body=body, headers={"Content-Type": "application/json"})
            assert answer.status in (400, 413, 422), (body[:10], answer.status)
            assert json.loads(answer.body)["message"]
    assert root.ask("GET", "/readyz")[0] == 200


def test_secrets_are_for_those_who_may_edit(grove: Tree) -> None:
    root = grove.sites["root"]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vault"}, "stringData": {"k": "hidden-word"}}
    assert root.ask("POST", f"{CORE}/secrets", secret)[0] == 201
    for group, sees in (("view", False), ("edit", True)):
        kubeconfig = grove.folder / f"{group}.kubeconfig"
        root.banyan("user", "create", f"u-{group}", "--group", group, "--namespace", "default", "--kubeconfig-out", str(kubeconfig))
        said = root.kubectl("get", "secret", "vault", "-o", "jsonpath={.data.k}", kubeconfig=kubeconfig, check=False)
        assert said.startswith("aGlkZGVu") is sees, said
        assert sees or "orbidden" in said
        assert "orbidden" in root.kubectl("get", "secrets", "-n", "kube-system", kubeconfig=kubeconfig, check=False)
    for table in (root.kubectl("get", "secrets"), root.kubectl("describe", "secret", "vault"), root.ask("GET", "/metrics")[1].decode()):
        assert "hidden-word" not in table
        assert "aGlkZGVu" not in table


def test_a_namespace_takes_all_that_is_in_it(grove: Tree) -> None:
    root = grove.sites["root"]
    shop = APPS.replace("default", "shop")
    document: dict[str, Any] = program("till")
    assert root.ask("POST", shop, document)[0] == 400  # it names another namespace than its address
    document["metadata"]["namespace"] = "shop"
    code, answer = root.ask("POST", shop, document)
    assert code == 404, answer
    root.kubectl("create", "namespace", "shop")
    assert root.ask("POST", shop, document)[0] == 201
    root.kubectl("create", "configmap", "prices", "-n", "shop")
    until("it runs", lambda: root.get(f"{shop}/till")["status"].get("ready") == 1)
    root.kubectl("delete", "namespace", "shop", "--timeout=30s")
    assert root.ask("GET", f"{shop}/till")[0] == 404
    assert root.ask("GET", "/api/v1/namespaces/shop")[0] == 404
    until("its instance is gone", lambda: pods(grove.sites["edge-1"], "till") == [])
    assert "orbidden" in root.kubectl("delete", "namespace", "default", check=False)


def test_a_watch_goes_on_through_a_restart_of_the_controller(tree: Tree) -> None:
    root = tree.root()
    port = read(root.folder / ADMIN_KUBECONFIG).address[1]
    fix_port(root, port)
    argv = [str(needs.kubectl()), "--kubeconfig", str(root.folder / ADMIN_KUBECONFIG), "get", "configmaps", "-w", "-o", "name"]
    with watching(argv) as seen:
        root.kubectl("create", "configmap", "one")
        until("it is seen", lambda: "configmap/one" in seen)
    # kubectl -w ends with its connection; one that is started while the controller is away goes on when it is back.
    root.kill()
    root.run()
    with watching(argv) as seen:
        until("nothing was lost", lambda: "configmap/one" in seen)
        root.kubectl("create", "configmap", "two")
        until("and it goes on", lambda: "configmap/two" in seen)


def fix_port(root: Site, port: int) -> None:
    """The same address after a restart."""
    root.stop()
    settings = root.folder / "banyan.toml"
    settings.write_text(settings.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
    root.run()


@contextlib.contextmanager
def watching(argv: list[str]) -> Any:
    seen: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=lambda: seen.extend(line.strip() for line in process.stdout or ()))
        reader.start()
        try:
            yield seen
        finally:
            process.kill()
            reader.join()


def test_an_address_that_is_not_there_is_said_with_the_remedy(tmp_path: Path) -> None:
    site = Site(tmp_path / "nobody", {})
    done = site.banyan("get", "pods", check=False)
    assert done.returncode != 0
    assert str(tmp_path / "nobody") in done.stderr


# What each command that only tells something is asked; a new command belongs here, or to those that change something.
TOLD = {
    "tree": (), "status": ("shown",), "get": ("applications",), "explain": ("shown",), "history": ("shown",), "version": (),
    "logs": ("shown", "--tail", "1"), "invoke": ("shown", "/"), "kubeconfig": ("edge-1", "--banyan"), "completion": ("bash",),
    "events": ("--last", "1"), "rollout status": ("shown", "--no-watch"), "rollout history": ("shown",), "rotate status": (),
    "upgrade plan": (), "approve": (), "token list": (), "user list": (), "cluster list": (), "cluster conflicts": ("root",),
    "model list": (), "model status": ("emotion",), "bench": ("hops", "--rounds", "1", "--seconds", "0.1", "--clusters", "2"),
}  # fmt: skip
CHANGES = (
    "apply", "delete", "undo", "init", "join", "run", "leave", "demo", "shim serve", "shim verify", "model publish", "model import",
    "token create",
    "token revoke", "user create", "user revoke", "cluster remove", "cluster revoke", "cluster keep", "cluster cordon",
    "cluster uncordon", "cluster drain", "backup", "restore", "rollout pause", "rollout resume", "rollout undo", "rotate tree-key",
    "rotate issuing", "rotate finish", "drill cut", "drill restart", "drill kill", "drill freeze",
    "move", "drill status",  # of a drill: e2e/test_drill.py
)  # fmt: skip


def test_every_command_that_tells_something_tells_it_as_json(grove: Tree) -> None:
    """Whole documents and nothing else, from a controller that really runs."""
    root = grove.sites["root"]
    create(root, program("shown", command=[sys.executable, "-c", SPEAKS], takesSocket=False, expose={"port": 18340}))
    until("it has spoken", lambda: root.banyan("logs", "shown").stdout)
    publish(root)
    assert sorted([*TOLD, *CHANGES]) == sorted(COMMANDS)
    for name, words in TOLD.items():
        done = root.banyan(*name.split(), *words, "-o", "json")
        assert json.loads(done.stdout), (name, done.stdout)
    assert json.loads(root.banyan("logs", "shown", "--tail", "1", "-o", "json").stdout) == {
        "cluster": "edge-1", "instance": pods(grove.sites["edge-1"], "shown")[0]["metadata"]["name"], "line": "here I am",
    }  # fmt: skip


SPEAKS = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

print("here I am", flush=True)
HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Hello).serve_forever()
"""
