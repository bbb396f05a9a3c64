"""An unmodified kubectl against the root, and through the root against an edge two hops down."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import Tree, talker, until
from tools import needs

pytestmark = [pytest.mark.needs("kubectl"), pytest.mark.usefixtures("deployed")]


@pytest.fixture(scope="module")
def deployed(three_levels: Tree) -> Tree:
    root = three_levels.sites["root"]
    root.kubectl("apply", "-f", "-", stdin=json.dumps(talker(replicas=2)))
    until("two talkers are ready", lambda: root.status("talker").get("ready") == 2)
    return three_levels


def test_get_shows_tables_and_documents(deployed: Tree) -> None:
    root = deployed.sites["root"]
    table = root.kubectl("get", "applications", "-o", "wide")
    assert "talker" in table
    assert "2/2" in table
    assert json.loads(root.kubectl("get", "app", "talker", "-o", "json"))["status"]["ready"] == 2
    assert "kind: Application" in root.kubectl("get", "app", "talker", "-o", "yaml")
    clusters = root.kubectl("get", "clusters")
    assert {"root", "region-a", "edge-1", "edge-2"} <= set(clusters.split())
    assert root.kubectl("get", "clusters", "--field-selector", "status.phase=Ready", "-o", "name").count("cluster.banyan.dev/") == 4
    assert "talker" in root.kubectl("get", "app", "-A")
    assert root.kubectl("get", "clusters", "--chunk-size=1", "-o", "name").count("cluster.banyan.dev/") == 4


def test_describe_explain_and_discovery(deployed: Tree) -> None:
    root = deployed.sites["root"]
    assert "Components" in root.kubectl("describe", "app", "talker")
    assert "components" in root.kubectl("explain", "application.spec")
    assert "applications" in root.kubectl("api-resources")
    assert "admin" in root.kubectl("auth", "whoami")
    assert root.kubectl("auth", "can-i", "delete", "applications").strip() == "yes"


def test_apply_diff_patch_label_annotate_scale_wait_delete(deployed: Tree, tmp_path: Path) -> None:
    root = deployed.sites["root"]
    manifest = tmp_path / "app.json"
    document = talker("changing")
    manifest.write_text(json.dumps(document))
    assert "created" in root.kubectl("apply", "-f", str(manifest))
    assert "unchanged" in root.kubectl("apply", "-f", str(manifest))
    document["spec"]["components"][0]["env"] = [{"name": "WORD", "value": "hello"}]
    manifest.write_text(json.dumps(document))
    assert "hello" in root.kubectl("diff", "-f", str(manifest), check=False)
    assert "configured" in root.kubectl("apply", "-f", str(manifest))
    root.kubectl("label", "app", "changing", "colour=green")
    assert "changing" in root.kubectl("get", "app", "-l", "colour=green")
    root.kubectl("annotate", "app", "changing", "note=yes")
    root.kubectl("patch", "app", "changing", "--type=json", "-p", '[{"op":"replace","path":"/spec/components/0/replicas","value":2}]')
    root.kubectl("scale", "app", "changing", "--replicas=1")
    assert "condition met" in root.kubectl("wait", "app/changing", "--for=condition=Ready", "--timeout=30s")
    assert "deleted" in root.kubectl("delete", "app", "changing", "--timeout=30s")
    assert "NotFound" in root.kubectl("get", "app", "changing", check=False)


def test_edit_goes_through_an_editor(deployed: Tree, tmp_path: Path) -> None:
    root = deployed.sites["root"]
    root.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "before"}})
    )
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i s/before/after/ "$1"\n')
    editor.chmod(0o755)
    done = subprocess.run(
        [str(needs.kubectl()), "--kubeconfig", str(root.folder / "admin.kubeconfig"), "edit", "configmap", "c"],
        env={"EDITOR": str(editor), "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(root.kubectl("get", "cm", "c", "-o", "json"))["data"] == {"k": "after"}


def test_a_mistake_is_refused_by_name_and_server_side_apply_says_so(deployed: Tree) -> None:
    root = deployed.sites["root"]
    bad = talker("bad")
    bad["spec"]["components"][0]["replica"] = 3
    assert "replica" in root.kubectl("apply", "-f", "-", stdin=json.dumps(bad), check=False)
    version = {"name": "1", "files": [], "variants": []}
    later = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Model", "metadata": {"name": "bad"}, "spec": {"versions": [version]}}
    assert "spec.versions[0].variants: is not served yet" in root.kubectl("create", "-f", "-", stdin=json.dumps(later), check=False)
    refused = root.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(talker("bad")), check=False)
    assert "server-side apply" in refused.lower()


def test_watch_sees_changes(deployed: Tree) -> None:
    root = deployed.sites["root"]
    command = [str(needs.kubectl()), "--kubeconfig", str(root.folder / "admin.kubeconfig"), "get", "configmaps", "-w", "-o", "name"]
    seen: list[str] = []
    with killed(command) as watch:
        reader = threading.Thread(target=lambda: seen.extend(line.strip() for line in watch.stdout or ()))
        reader.start()
        root.kubectl("create", "configmap", "watched", "--from-literal=a=b")
        until("the watch shows it", lambda: "configmap/watched" in seen)
        watch.kill()
        reader.join()


@contextlib.contextmanager
def killed(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Runs until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_pods_and_logs_of_an_edge_through_two_hops(deployed: Tree, tmp_path: Path) -> None:
    root = deployed.sites["root"]
    kubeconfig = tmp_path / "edge-1.kubeconfig"
    kubeconfig.write_text(root.banyan("kubeconfig", "edge-1", "--banyan").stdout)
    pods = json.loads(root.kubectl("get", "pods", "-o", "json", kubeconfig=kubeconfig))["items"]
    assert [pod["metadata"]["labels"]["banyan.dev/application"] for pod in pods] == ["talker"]
    name = pods[0]["metadata"]["name"]
    assert "line 1" in root.kubectl("logs", name, kubeconfig=kubeconfig)
    assert len(root.kubectl("logs", name, "--tail=2", kubeconfig=kubeconfig).splitlines()) == 2
    with killed([str(needs.kubectl()), "--kubeconfig", str(kubeconfig), "logs", "-f", "--tail=1", name]) as follow:
        assert follow.stdout is not None
        first = int(follow.stdout.readline().split()[1])
        assert int(follow.stdout.readline().split()[1]) == first + 1
    assert "Ready" in root.kubectl("get", "nodes", kubeconfig=kubeconfig)


def test_at_reaches_a_descendant_as_the_same_user(deployed: Tree) -> None:
    root = deployed.sites["root"]
    listed = json.loads(root.banyan("--at", "edge-2", "get", "pods", "-o", "json").stdout)
    assert len(listed["items"]) == 1


def test_python_client_lists_and_watches(deployed: Tree) -> None:
    program = f"""
import kubernetes
kubernetes.config.load_kube_config({str(deployed.sites["root"].folder / "admin.kubeconfig")!r})
dynamic = kubernetes.dynamic.DynamicClient(kubernetes.client.ApiClient())
apps = dynamic.resources.get(api_version="banyan.dev/v1alpha1", kind="Application")
print([item.metadata.name for item in apps.get(namespace="default").items])
for event in apps.watch(namespace="default", timeout=5):
    print(event["type"], event["object"].metadata.name)
    break
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "talker" in done.stdout
    assert "ADDED talker" in done.stdout
