"""A context is added to a kubeconfig that somebody has already, and nothing else in it changes."""

import json
from pathlib import Path

import pytest

from banyanctl.credential import Endpoint
from banyanctl.endpoint import added, below, read, render
from banyanctl.manifests import loads
from cluster_controller.errors import InvalidInput

ROOT = Endpoint(server="https://127.0.0.1:8443", token="bnyu_x")
EDGE = below(ROOT, "edge-k8s", "proxy")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_new_file_has_one_context(tmp_path: Path) -> None:
    path = tmp_path / "config"
    assert added(path, EDGE, "edge-k8s", "banyan-edge-k8s") == render(EDGE, "edge-k8s", "banyan-edge-k8s")
    path.write_text("")
    assert added(path, EDGE, "edge-k8s", "banyan-edge-k8s") == render(EDGE, "edge-k8s", "banyan-edge-k8s")


def test_what_is_there_stays(tmp_path: Path) -> None:
    mine = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {"colors": True},
        "clusters": [{"name": "work", "cluster": {"server": "https://work"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
        "contexts": [{"name": "work", "context": {"cluster": "work", "user": "me"}}],
        "current-context": "work",
    }
    path = write(tmp_path / "config", json.dumps(mine))
    for server in ("https://127.0.0.1:1", "https://127.0.0.1:2"):  # the second time it is renewed, not doubled
        path.write_text(added(path, below(Endpoint(server=server, token="t"), "edge-k8s", "proxy"), "edge-k8s", "banyan-edge-k8s"))
    (found,) = loads(path.read_text())
    assert found["current-context"] == "work"
    assert found["preferences"] == {"colors": True}
    for table in ("clusters", "users", "contexts"):
        assert found[table][0] == mine[table][0]  # type: ignore[index]
        assert len(found[table]) == 2
    found["current-context"] = "edge-k8s"
    assert read(write(path, json.dumps(found))).server == "https://127.0.0.1:2/apis/banyan.dev/v1alpha1/clusters/edge-k8s/proxy"


def test_a_file_without_a_current_context_gets_one(tmp_path: Path) -> None:
    path = write(tmp_path / "config", "apiVersion: v1\nkind: Config\nclusters: null\n")
    assert read(write(path, added(path, EDGE, "edge-k8s", "u"))).token == "bnyu_x"


@pytest.mark.parametrize("text", ["kind: ConfigMap\n", "- a\n", "just text", "a: 1\n---\nb: 2\n", "{"])
def test_what_is_no_kubeconfig_is_not_touched(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "config", text)
    with pytest.raises(InvalidInput):
        added(path, EDGE, "edge-k8s", "u")
    assert path.read_text() == text
