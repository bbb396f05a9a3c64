"""The command tree: every command explains itself, and commands say the right thing to the API (a real HTTPS server)."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from msgspec import structs

from banyanctl import cli, run
from banyanctl.endpoint import read, render, write_private
from tests.banyanctl.https import Asked, Authority, Reply, endpoint, serving

CLUSTERS = "/apis/banyan.dev/v1alpha1/clusters"
APPS = "/apis/banyan.dev/v1alpha1/namespaces/default/applications"


def every_command() -> Iterator[tuple[str, click.Command]]:
    for name, entry in cli.ENTRIES.items():
        command = cli.load(entry)
        if isinstance(command, click.Group):
            yield from ((f"{name} {child}", found) for child, found in command.commands.items())
        else:
            yield name, command


COMMANDS = dict(every_command())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_examples_and_an_output_format(name: str) -> None:
    command = COMMANDS[name]
    with click.Context(command, info_name=name, parent=click.Context(cli.build(), info_name="banyan")) as context:
        text = run.help_text() if name == "run" else command.get_help(context)  # it parses its own flags, those of Config
    assert command.help
    assert f"banyan {name}" in text.partition("Examples:")[2], f"banyan {name} --help shows no example of itself"
    assert ("-o, --output" in text) is (name != "run")  # which prints nothing, and logs


def test_help_loads_no_group_and_nothing_heavy() -> None:
    code = "import sys; from banyanctl import cli; cli.main(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.split())
    assert "banyanctl.output" in loaded
    assert not loaded & {
        "banyanctl.objects",
        "banyanctl.client",
        "http.client",
        "ssl",
        "asyncio",
        "rich",
        "yaml",
        "cryptography",
        "cluster_controller.resources",
    }
    for name in cli.ENTRIES:
        assert f"\n  {name} " in done.stdout


# --- as a process, against a real server ---


class Banyan:
    """Runs `banyan` against one server, as one user."""

    def __init__(self, folder: Path, url: str, authority: Authority, asked: list[Asked]) -> None:
        self.kubeconfig = folder / "kubeconfig"
        write_private(self.kubeconfig, render(endpoint(url, authority, token="t"), "test", "me"))
        self.asked = asked
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "banyanctl", "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


class Api:
    """What the server answers: method and path → reply; 404 for everything else."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply | list[Reply]] = {}

    def __call__(self, asked: Asked) -> Reply:
        path = asked.path.partition("?")[0]
        found = self.replies.get(f"{asked.method} {path}")
        if isinstance(found, list):
            return found.pop(0)
        return found or (404, {"kind": "Status", "reason": "NotFound", "message": f"{path} does not exist"})


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def banyan(api: Api, tmp_path: Path) -> Iterator[Banyan]:
    authority = Authority()
    with serving(authority, api, tmp_path) as (url, asked):
        yield Banyan(tmp_path, url, authority, asked)


def cluster(name: str, uid: str, parent: str = "", path: tuple[str, ...] = (), phase: str = "Ready", **more: Any) -> dict[str, Any]:
    cells = [name, parent or "<none>", phase, "3s" if path else "", more.get("broken", "")]
    status = {
        "uid": uid,
        "parentUid": parent,
        "parent": parent,
        "path": list(path),
        "facts": {"applications": 1, "instances": 2},
        "labels": more.get("labels", {}),
    }
    return {"cells": cells, "object": {"metadata": {"name": name}, "status": status}}


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    names = ("Name", "Parent", "Status", "Heard", "Broken")
    return {"kind": "Table", "columnDefinitions": [{"name": name, "type": "string", "priority": 0} for name in names], "rows": list(rows)}


TREE = table(
    cluster("root", "u0"),
    cluster("region-a", "u1", "u0", ("region-a",), "Unknown", broken="root → region-a"),
    cluster("edge-1", "u2", "u1", ("region-a", "edge-1"), "Unknown", broken="root → region-a"),
    cluster("edge-2", "u3", "u0", ("edge-2",)),
)


def test_the_tree_is_drawn_with_health_age_and_the_broken_hop(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}"] = (200, TREE)
    drawn = banyan("tree").stdout.splitlines()
    assert [line.split("●")[0].split("○")[0].rstrip() for line in drawn] == ["root", "├── edge-2", "└── region-a", "    └── edge-1"]
    assert "heard 3s ago" in drawn[2]
    assert "broken: root → region-a" in drawn[3]
    assert "broken" not in drawn[1]
    only = banyan("tree", "--broken").stdout
    assert "edge-2" not in only
    assert "edge-1" in only
    nested = json.loads(banyan("tree", "-o", "json").stdout)
    assert nested[0]["children"][1]["children"][0]["name"] == "edge-1"


def test_a_selector_sees_the_labels_that_the_site_gave_itself(banyan: Banyan, api: Api) -> None:
    rows = (
        cluster("root", "u0"),
        cluster("c1", "u1", "u0", ("c1",), labels={"tier": "edge"}),
        cluster("c10", "u2", "u0", ("c10",), labels={"tier": "edges"}),
    )
    api.replies[f"GET {CLUSTERS}"] = (200, table(*rows))
    assert banyan("tree", "-l", "tier=edge", "-o", "name").stdout == "c1\n"
    assert banyan("cluster", "list", "-l", "tier=edge", "-o", "name").stdout == "cluster/c1\n"
    assert "SELECTOR" not in banyan("tree", "-l", "tier=(", code=2).stderr


def test_two_reports_that_contradict_each_other_lose_no_cluster(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}"] = (200, table(cluster("a", "ua", "ub", ("a",)), cluster("b", "ub", "ua", ("b",))))
    drawn = banyan("tree").stdout
    assert "a " in drawn
    assert "b " in drawn


APP = "apiVersion: banyan.dev/v1alpha1\nkind: Application\nmetadata: {name: shop}\nspec: {components: []}\n"


def test_apply_creates_then_leaves_alone_then_changes(banyan: Banyan, api: Api) -> None:
    (banyan.folder / "app.yaml").write_text(APP)
    api.replies[f"POST {APPS}"] = (201, {"metadata": {"name": "shop"}})
    assert banyan("apply", "-f", "app.yaml").stdout == "application/shop created\n"
    made = banyan.asked[-1].json
    stored = {**made, "metadata": {**made["metadata"], "resourceVersion": "7", "uid": "u"}, "status": {"phase": "Running"}}
    api.replies[f"GET {APPS}/shop"] = (200, stored)
    assert banyan("apply", "-f", "app.yaml").stdout == "application/shop unchanged\n"
    conflict = (409, {"kind": "Status", "reason": "Conflict", "message": "somebody was faster"})
    api.replies[f"PATCH {APPS}/shop"] = [conflict, (200, stored)]
    changed = APP.replace("components: []", "components: [{name: web}]")
    assert banyan("apply", "-f", "-", stdin=changed).stdout == "application/shop changed\n"
    patch = banyan.asked[-1]
    assert patch.headers["content-type"] == "application/merge-patch+json"
    assert patch.json["spec"] == {"components": [{"name": "web"}]}
    assert patch.json["metadata"]["resourceVersion"] == "7"
    assert "status" not in patch.json


def test_a_refused_manifest_is_named_with_file_and_field(banyan: Banyan, api: Api) -> None:
    (banyan.folder / "app.yaml").write_text(APP)
    api.replies[f"POST {APPS}"] = (422, {"kind": "Status", "reason": "Invalid", "message": "spec.components: at least one"})
    said = banyan("apply", "-f", "app.yaml", code=2).stderr
    assert said == "error: app.yaml, document 1: application/shop: spec.components: at least one\n"
    (banyan.folder / "app.yaml").write_text(APP.replace("v1alpha1", "v9"))
    assert "did you mean apiVersion: banyan.dev/v1alpha1" in banyan("apply", "-f", "app.yaml", code=2).stderr


def test_get_prints_the_servers_table_or_the_objects(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}"] = (200, TREE)
    lines = banyan("get", "cl").stdout.splitlines()
    assert lines[0].split() == ["NAME", "PARENT", "STATUS", "HEARD", "BROKEN"]
    assert len(lines) == 5
    api.replies[f"GET {APPS}/shop"] = (200, {"kind": "Application", "metadata": {"name": "shop"}})
    assert banyan("get", "app/shop", "-o", "name").stdout == "application/shop\n"
    assert json.loads(banyan("get", "app", "shop", "-o", "json").stdout)["metadata"]["name"] == "shop"
    assert "kind: Application" in banyan("get", "app/shop", "-o", "yaml").stdout
    assert "there is no kind 'nonsense'; there are: applications" in banyan("get", "nonsense", code=2).stderr
    assert "does not exist" in banyan("get", "app/other", code=3).stderr


def test_a_decision_about_a_member_is_taken_where_its_parent_is(banyan: Banyan, api: Api) -> None:
    document = {"metadata": {"name": "edge-1"}, "status": {"path": ["region-a", "edge-1"]}}
    api.replies[f"GET {CLUSTERS}/edge-1"] = (200, document)
    api.replies[f"POST {CLUSTERS}/region-a/banyan{CLUSTERS}/edge-1/revoke"] = (200, {"state": "revoked"})
    assert "edge-1 revoked" in banyan("cluster", "revoke", "edge-1", "--reason", "lost").stdout
    assert banyan.asked[-1].json == {"reason": "lost"}


def test_cordon_and_drain_lay_this_controllers_own_overlay_and_leave_other_taints(banyan: Banyan, api: Api) -> None:
    gpu, drain = {"key": "gpu", "effect": "NoSchedule"}, {"key": "banyan.dev/drain", "effect": "NoExecute"}

    def edge(*taints: dict[str, str], instances: int = 0) -> dict[str, Any]:
        status: dict[str, Any] = {"path": ["region-a", "edge-1"], "phase": "Ready", "facts": {"instances": instances}}
        status["sources"] = [{"key": "cordon", "setBy": "region-a"}, {"key": "cordon", "setBy": "root"}]
        return {"metadata": {"name": "edge-1", "resourceVersion": "7"}, "spec": {"taints": list(taints)}, "status": status}

    root = {"metadata": {"name": "root"}, "status": {"phase": "Ready", "facts": {"instances": 4}}}
    silent = {"metadata": {"name": "leaf"}, "status": {"path": ["region-a", "edge-1", "leaf"], "phase": "Unknown"}}

    def every(*instances: int) -> list[Reply]:
        return [(200, {"items": [root, silent, edge(gpu, drain, instances=count)]}) for count in instances]

    api.replies[f"PATCH {CLUSTERS}/edge-1"] = (200, edge(gpu))
    api.replies[f"GET {CLUSTERS}/edge-1"] = (200, edge(gpu))
    assert banyan("cluster", "cordon", "edge-1").stdout.startswith("cluster edge-1 cordoned;")
    assert banyan.asked[-1].json == {"metadata": {"resourceVersion": "7"}, "spec": {"unschedulable": True, "taints": [gpu]}}
    api.replies["GET /api/v1/events"] = (200, {"items": []})
    api.replies[f"GET {CLUSTERS}"] = every(2, 1, 0)
    assert "edge-1 is drained; out of reach, and drained when back: leaf;" in banyan("cluster", "drain", "edge-1").stdout
    patched = [asked.json for asked in banyan.asked if asked.method == "PATCH"]
    assert patched[-1]["spec"] == {"unschedulable": True, "taints": [gpu, drain]}
    api.replies[f"GET {CLUSTERS}"] = every(2) * 9
    assert "instances still run on edge-1 (2)" in banyan("cluster", "drain", "edge-1", "--timeout", "0.6", code=5).stderr
    api.replies[f"GET {CLUSTERS}/edge-1"] = (200, edge(gpu, drain))
    api.replies[f"GET {CLUSTERS}"] = every(0)
    assert "uncordoned; it stays cordoned for region-a" in banyan("cluster", "uncordon", "edge-1").stdout
    patched = [asked.json for asked in banyan.asked if asked.method == "PATCH"]
    assert patched[-1]["spec"] == {"unschedulable": False, "taints": [gpu]}


def test_approving_says_what_came_of_it(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}/edge-1"] = (200, {"metadata": {"name": "edge-1"}, "status": {"path": ["edge-1"]}})
    for state, said in (("approved", "it is let in when it asks again"), ("member", "is a member already")):
        api.replies[f"POST {CLUSTERS}/edge-1/approve"] = (200, {"state": state})
        assert said in banyan("approve", "edge-1").stdout


def test_the_version_is_banyans_own(banyan: Banyan, api: Api) -> None:
    api.replies["GET /version"] = (200, {"gitVersion": "v1.32.0+banyan-0.7.1"})
    found = json.loads(banyan("version", "-o", "json").stdout)
    assert (found["controller"]["version"], found["controller"]["kubernetes"]) == ("0.7.1", "v1.32.0")
    assert "controller 0.7.1 (API of Kubernetes v1.32.0) at https://" in banyan("version").stdout
    api.replies["GET /version"] = (200, {"gitVersion": "v1.34.2"})  # some other API server
    assert json.loads(banyan("version", "-o", "json").stdout)["controller"]["version"] == ""


def test_names_of_the_whole_tree(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}"] = (200, TREE)
    assert banyan("tree", "-o", "name").stdout.split() == ["root", "region-a", "edge-1", "edge-2"]


def test_a_token_is_made_at_its_parent_and_printed_alone(banyan: Banyan, api: Api) -> None:
    tokens = "/apis/banyan.dev/v1alpha1/jointokens"
    api.replies[f"POST {CLUSTERS}/region-a/banyan{tokens}"] = (201, {"metadata": {"name": "join-1"}, "status": {"token": "banyan1abc"}})
    done = banyan("token", "create", "--parent", "region-a", "--expires", "1h30m", "--approve", "--labels", "a=b")
    assert done.stdout == "banyan1abc\n"
    assert "shown once" in done.stderr
    assert banyan.asked[-1].json["spec"] == {"expiresAfterSeconds": 5400, "approve": True, "labels": {"a": "b"}}
    assert "is no duration" in banyan("token", "create", "--expires", "soon", code=2).stderr


def test_a_user_gets_a_kubeconfig_that_is_private(banyan: Banyan, api: Api) -> None:
    api.replies["POST /apis/banyan.dev/v1alpha1/users"] = (201, {"metadata": {"name": "ann"}, "status": {"token": "bnyu_x"}})
    banyan("user", "create", "ann", "--group", "edit", "-n", "shop", "--credential", "token", "--kubeconfig-out", "ann.kubeconfig")
    written = banyan.folder / "ann.kubeconfig"
    assert written.stat().st_mode & 0o777 == 0o600
    assert (read(written).token, read(written).namespace) == ("bnyu_x", "shop")
    assert "'boss' is not one of" in banyan("user", "create", "ann", "--group", "boss", code=2).stderr


def test_a_kubeconfig_that_is_handed_over_names_an_address_that_the_certificate_is_good_for(banyan: Banyan, api: Api) -> None:
    users = "/apis/banyan.dev/v1alpha1/users"
    api.replies[f"POST {users}"] = (201, {"metadata": {"name": "ann"}, "status": {"token": "bnyu_x"}})
    create = ("user", "create", "ann", "--group", "edit", "--kubeconfig-out", "ann.kubeconfig")
    assert "this machine alone" in banyan(*create).stderr
    banyan(*create, "--server", "localhost:9443")
    assert read(banyan.folder / "ann.kubeconfig").server == "https://localhost:9443"
    before = len(banyan.asked)
    refused = banyan(*create, "--server", "https://hq.example.com", code=2).stderr
    assert "not for hq.example.com" in refused and "api_advertise" in refused
    for wrong in ("http://localhost", "https://localhost/x", "https://a@localhost", "https://:1", "https://localhost:99999"):
        assert "is not https://HOST:PORT" in banyan(*create, "--server", wrong, code=2).stderr
    assert len(banyan.asked) == before, "a user was made whose credential nobody got"
    banyan("kubeconfig", "--server", "https://localhost", "--write", "mine.kubeconfig")
    assert read(banyan.folder / "mine.kubeconfig").server == "https://localhost:443"


def test_what_a_controller_advertises_goes_into_what_is_handed_over(banyan: Banyan, api: Api) -> None:
    api.replies["POST /apis/banyan.dev/v1alpha1/users"] = (201, {"metadata": {"name": "ann"}, "status": {"token": "bnyu_x"}})
    own = structs.replace(read(banyan.kubeconfig), advertised="https://localhost:9443")
    write_private(banyan.kubeconfig, render(own, "test", "me"))
    banyan("user", "create", "ann", "--group", "view", "--kubeconfig-out", "ann.kubeconfig")
    made = read(banyan.folder / "ann.kubeconfig")
    assert (made.server, made.advertised) == ("https://localhost:9443", "")


def test_a_kubeconfig_for_a_descendant_goes_through_the_tree(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}/edge-1"] = (200, {"metadata": {"name": "edge-1"}, "status": {"facts": {"shim": "process"}}})
    banyan("kubeconfig", "edge-1", "--banyan", "--write", "edge.kubeconfig")
    assert read(banyan.folder / "edge.kubeconfig").path == f"{CLUSTERS}/edge-1/banyan"
    assert "--banyan" in banyan("kubeconfig", "edge-1", code=2).stderr


INVOKE = "/apis/banyan.dev/v1alpha1/invoke"
ROWS = [
    {"cluster": "edge-2", "uid": "u2", "code": 200, "contentType": "application/json", "body": '{"a": 1}', "truncated": False, "age": 0.0},
    {"cluster": "edge-1", "uid": "u1", "code": 503, "message": "root → region-a is cut", "age": 41.7, "ageAtLeast": True, "brokenHop": "x"},
    {"cluster": "edge-3", "uid": "u3", "code": 200, "contentType": "application/json", "body": '{"a"', "truncated": True, "age": 0.0},
    {"cluster": "edge-4", "uid": "u4", "code": 200, "contentType": "image/png", "bodyBase64": "AA==", "truncated": False, "age": 0.0},
    {"cluster": "edge-5", "uid": "u5", "code": 504, "message": "late", "age": None},
]


def test_one_cluster_that_fails_does_not_spoil_the_others(banyan: Banyan, api: Api) -> None:
    """The controller asks them; what it says of each is told as it is."""
    api.replies[f"POST {INVOKE}"] = (200, {"kind": "InvokeResult", "items": [row | {"milliseconds": 3.5} for row in ROWS]})
    done = banyan("invoke", "--clusters", "tier=edge", "shop", "/x?y=1", "-d", "{}", "--timeout", "3", "-o", "json", code=1)
    rows = {each["cluster"]: each for each in json.loads(done.stdout)["items"]}
    assert list(rows) == ["edge-1", "edge-2", "edge-3", "edge-4", "edge-5"]
    assert rows["edge-2"]["body"] == {"a": 1} and rows["edge-3"]["body"] == '{"a"'
    assert rows["edge-1"] == ROWS[1] | {"milliseconds": 3.5}
    assert banyan.asked[-1].json == {
        "labelSelector": "tier=edge", "method": "POST", "path": f"{APPS}/shop/proxy/x?y=1", "headers": {"Content-Type": "application/json"},
        "bodyBase64": "e30=", "timeoutSeconds": 3.0, "maxBodyBytes": 1 << 20,
    }  # fmt: skip
    shown = [" ".join(line.split()) for line in banyan("invoke", "--clusters", "", "/healthz", code=1).stdout.splitlines()]
    assert shown[1] == "edge-1 503 4 ms ≥ 42s root → region-a is cut"
    assert shown[2] == 'edge-2 200 4 ms 0s {"a": 1}'
    assert shown[4:] == ["edge-4 200 4 ms 0s binary", "edge-5 504 4 ms never heard late"]
    assert (banyan.asked[-1].json["labelSelector"], banyan.asked[-1].json["method"]) == ("", "GET")


def test_when_all_answer_it_ends_well_and_when_none_is_meant_it_says_so(banyan: Banyan, api: Api) -> None:
    api.replies[f"POST {INVOKE}"] = (200, {"items": [ROWS[0] | {"milliseconds": 1}]})
    banyan("invoke", "--clusters", "tier=edge", "/healthz")
    api.replies[f"POST {INVOKE}"] = (404, {"kind": "Status", "reason": "NotFound", "message": "no cluster has these labels"})
    assert "no cluster has these labels" in banyan("invoke", "--clusters", "tier=none", "/healthz", code=3).stderr


def test_an_application_is_invoked_through_its_proxy(banyan: Banyan, api: Api) -> None:
    api.replies[f"POST {APPS}/shop/proxy/v2/infer"] = (200, {"outputs": []})
    assert json.loads(banyan("invoke", "shop", "/v2/infer?x=1", "-d", "{}").stdout) == {"outputs": []}
    assert banyan.asked[-1].path.endswith("/infer?x=1")
    assert banyan.asked[-1].body == b"{}"
    assert "answered 404" in banyan("invoke", "shop", "/none", code=1).stderr


def test_a_model_is_sent_once(banyan: Banyan, api: Api) -> None:
    models = "/apis/banyan.dev/v1alpha1/namespaces/default/models"
    (banyan.folder / "m.onnx").write_bytes(b"model")
    digest = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    api.replies[f"POST {models}"] = (201, {"metadata": {"name": "emotion"}})
    api.replies[f"PUT {models}/emotion/blobs/sha256/{digest}"] = (201, {})
    said = banyan("model", "publish", "emotion", "m.onnx", "--version", "1", "--licence", "MIT").stdout
    assert "published: 1 files, 5 B, 5 B sent" in said
    version = banyan.asked[1].json["spec"]["versions"][0]
    assert version == {"name": "1", "files": [{"path": "m.onnx", "sha256": digest, "size": 5}], "licence": "MIT"}
    assert banyan.asked[-1].body == b"model"
    api.replies[f"GET {models}/emotion"] = (200, {"metadata": {"name": "emotion"}, "spec": {"versions": [version]}})
    api.replies[f"HEAD {models}/emotion/blobs/sha256/{digest}"] = (200, b"")
    assert "is there already" in banyan("model", "publish", "emotion", "m.onnx", "--version", "1").stdout
    (banyan.folder / "m.onnx").write_bytes(b"other")
    assert "with other files" in banyan("model", "publish", "emotion", "m.onnx", "--version", "1", code=4).stderr


def test_a_chart_is_published_as_its_archive_and_nothing_else_is(banyan: Banyan, api: Api) -> None:
    chart = banyan.folder / "web-1.0.0.tgz"
    with tarfile.open(chart, "w:gz") as tar:
        member = tarfile.TarInfo("web/Chart.yaml")
        member.size = 10
        tar.addfile(member, io.BytesIO(b"name: web\n"))
    digest = hashlib.sha256(chart.read_bytes()).hexdigest()
    models = "/apis/banyan.dev/v1alpha1/namespaces/default/models"
    api.replies[f"POST {models}"] = (201, {"metadata": {"name": "web"}})
    api.replies[f"PUT {models}/web/blobs/sha256/{digest}"] = (201, {})
    assert "published: 1 files" in banyan("model", "publish", "web", chart.name, "--version", "1.0.0", "--runtime", "helm").stdout
    (version,) = banyan.asked[1].json["spec"]["versions"]
    assert version == {
        "name": "1.0.0",
        "runtime": "helm",
        "files": [{"path": chart.name, "sha256": digest, "size": chart.stat().st_size}],
    }
    # What is published once does not become something else.
    api.replies[f"GET {models}/web"] = (200, {"metadata": {"name": "web"}, "spec": {"versions": [version]}})
    assert "publish under a new --version" in banyan("model", "publish", "web", chart.name, "--version", "1.0.0", code=4).stderr
    (banyan.folder / "Chart.yaml").write_text("name: web", encoding="utf-8")
    asked = len(banyan.asked)
    said = banyan("model", "publish", "web", "Chart.yaml", "--version", "2", "--runtime", "helm", code=2).stderr
    assert "no chart archive" in said and "helm package" in said
    said = banyan("model", "publish", "web", chart.name, "Chart.yaml", "--version", "2", "--runtime", "helm", code=2).stderr
    assert "as one archive; 2 files were given" in said
    with tarfile.open(chart, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("Chart.yaml"))
    assert (
        "holds no Chart.yaml in one folder"
        in banyan("model", "publish", "web", chart.name, "--version", "2", "--runtime", "helm", code=2).stderr
    )
    assert len(banyan.asked) == asked  # nothing of it was asked of the controller


def test_delete_waits_until_it_is_gone(banyan: Banyan, api: Api) -> None:
    there = (200, {"metadata": {"name": "shop", "uid": "u"}, "status": {"withdrawing": ["edge-1"]}})
    api.replies[f"DELETE {APPS}/shop"] = there
    api.replies[f"GET {APPS}/shop"] = [there, (404, {"kind": "Status", "reason": "NotFound", "message": "gone"})]
    assert banyan("delete", "app/shop", "--wait").stdout == "application/shop deleted\n"
    assert "say which applications" in banyan("delete", "app", code=2).stderr
    assert banyan("delete", "app/none", "--ignore-not-found").stdout == ""


def test_wrong_words_are_answered_with_the_right_ones(banyan: Banyan) -> None:
    assert "No such command 'tre'. Did you mean 'tree'?" in banyan("tre", code=2).stderr
    assert "No such command 'xyzzy'.\n" in banyan("xyzzy", code=2).stderr
    assert "did you mean applications?" in banyan("get", "aplications", code=2).stderr
    assert "Missing argument" in banyan("history", code=2).stderr
    assert "No such option" in banyan("tree", "--colour", code=2).stderr


def test_a_reader_that_goes_away_is_no_error(banyan: Banyan, api: Api) -> None:
    api.replies[f"GET {CLUSTERS}"] = (200, table(*(cluster(f"c{number}", f"u{number}", "", ("x",)) for number in range(3000))))
    argv = f"{sys.executable} -m banyanctl --kubeconfig {banyan.kubeconfig} get clusters | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", argv], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, banyan: Banyan) -> None:
    script = banyan("completion", shell).stdout
    assert "_BANYAN_COMPLETE" in script


def test_bash_completes_commands() -> None:
    environment = os.environ | {"_BANYAN_COMPLETE": "complete_bash", "COMP_WORDS": "banyan tok", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "banyanctl"], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout.split() == ["token"]


def test_a_person_of_one_namespace_is_told_of_an_application_without_the_tree(banyan: Banyan, api: Api) -> None:
    state = {"phase": "Running", "ready": 1, "desired": 1, "clusters": [{"cluster": "u2", "name": "edge-1", "desired": 1, "ready": 1}]}
    document = {"metadata": {"name": "shop", "namespace": "default", "generation": 3}, "status": state}
    forbidden = {"kind": "Status", "reason": "Forbidden", "message": "that needs the role view in all namespaces"}
    api.replies[f"GET {APPS}/shop"] = (200, document)
    api.replies[f"GET {CLUSTERS}"] = (403, forbidden)
    api.replies[f"GET {APPS}/shop/explain"] = (200, {"clusters": []})
    api.replies["GET /api/v1/namespaces/default/events"] = (200, {"metadata": {"resourceVersion": "1"}, "items": []})
    shown = banyan("status", "shop").stdout
    assert "default/shop  Running  1 of 1 ready" in shown and "edge-1" in shown and "generation 3" in shown
    api.replies[f"GET {CLUSTERS}"] = (200, TREE)
    api.replies[f"GET {APPS}/shop/explain"] = (200, {"clusters": [{"uid": "u2", "components": [{"replicas": 1}]}]})
    assert "region-a  1  Unknown, heard 3s ago  broken: root → region-a" in banyan("status", "shop").stdout
