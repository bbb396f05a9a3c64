"""Helm charts from the root into a member: published as models are, rendered at the site, applied, upgraded, pruned and removed."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.place import Place, busybox, join
from e2e.support import Site, growing, until
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
CLUSTER = "edge-charts"
CHART = "apiVersion: v2\nname: shop\nversion: 1.0.0\n"
VALUES = "greeting: hello\nextra: false\n"
TEMPLATES = """apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {greeting: {{ .Values.greeting | quote }}, member: {{ .Capabilities.KubeVersion.Version | quote }}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec: {containers: [{name: shop, image: "nowhere/shop:1"}]}
{{- if .Values.extra }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: extra}
{{- end }}
"""
BAD = "a: {{ .Values.greeting | nosuch }}\n"


@pytest.fixture(scope="module")
def joined(kwok_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """root, and a controller beside a cluster whose nodes and pods are played."""
    with growing(tmp_path_factory.mktemp("charts")) as tree:
        root = tree.root()
        yield root, join(tree, root, CLUSTER, kwok_member)


@pytest.fixture
def place(joined: tuple[Site, Site], kwok_member: Member) -> Iterator[Place]:
    place = Place(*joined, kwok_member, CLUSTER)
    yield place
    place.clear()


def publish(place: Place, folder: Path, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """As a Model; what a component says of it."""
    archive = folder / f"{name}.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for path, content in ({"shop/Chart.yaml": CHART.encode()} | files).items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    said = place.root.banyan("model", "publish", name, str(archive), "--version", "1", "--runtime", "helm", "-n", place.namespace).stdout
    assert f"model/{name} version 1 published" in said
    return {"chart": {"name": name, "version": "1"}}


def configs(place: Place) -> dict[str, dict[str, str]]:
    """What the chart's ConfigMaps hold in the member."""
    found = {item["metadata"]["name"]: item.get("data", {}) for item in place.objects("configmaps")}
    return {name: data for name, data in found.items() if name in {"greeting", "extra"}}


def set_values(place: Place, **values: Any) -> None:
    change = [{"op": "add", "path": "/spec/components/0/helm/values", "value": values}]
    place.root.kubectl("patch", "application", "shop", "-n", place.namespace, "--type=json", "-p", json.dumps(change))


def test_a_chart_is_applied_upgraded_pruned_and_removed(place: Place, tmp_path: Path) -> None:
    chart = publish(place, tmp_path, "shop", {"shop/values.yaml": VALUES.encode(), "shop/templates/all.yaml": TEMPLATES.encode()})
    place.create("shop", {"helm": chart})
    until("the chart's objects are in the member", lambda: configs(place).keys() == {"greeting"})
    version = json.loads(place.member.kubectl("get", "--raw", "/version"))["gitVersion"].partition("+")[0]
    assert configs(place)["greeting"]["greeting"] == "hello"
    assert configs(place)["greeting"]["member"].startswith(version)  # rendered for this very cluster
    place.until_ready("shop")
    (shop,) = place.objects("deployments")
    set_values(place, greeting="moin", extra=True)
    until("the new values are", lambda: configs(place).get("greeting", {}).get("greeting") == "moin" and "extra" in configs(place))
    assert place.objects("deployments")[0]["metadata"]["uid"] == shop["metadata"]["uid"]  # an upgrade, not another installation
    set_values(place, greeting="moin")
    until("what the chart makes no more is gone", lambda: configs(place).keys() == {"greeting"})
    place.root.kubectl("delete", "application", "shop", "-n", place.namespace)
    until("all of it is gone", lambda: configs(place) == {} and place.objects("deployments") == [])


def test_a_bad_chart_says_what_is_wrong_with_it_and_the_rest_runs(place: Place, tmp_path: Path) -> None:
    bad = {
        "broken": ({"shop/values.yaml": VALUES.encode(), "shop/templates/bad.yaml": BAD.encode()}, 'function "nosuch" not defined'),
        "climbs": ({"shop/../../../climbed": b"out"}, "'shop/../../../climbed', which climbs out of its folder"),
        "bomb": ({"shop/zeros": bytes(65 << 20)}, "unpacks to more than 64 MiB or 200 times its size"),
    }
    for name, (files, _) in bad.items():
        place.create(name, {"helm": publish(place, tmp_path, name, files)}, busybox("sleep", "3600", name="good"))
    for name, (_, why) in bad.items():
        assert why in place.until_reason(name, "NotRendered")
        until(f"the other component of {name} runs", lambda name=name: ready(place, name) == {"main": 0, "good": 1})
    assert len(place.objects("deployments")) == len(bad)
    unpacked = [path for path in (place.edge.folder / "kubernetes" / "charts").iterdir() if path.is_dir()]
    assert not unpacked and not list(place.edge.folder.rglob("climbed"))


def ready(place: Place, name: str) -> dict[str, int]:
    return {each["name"]: each.get("ready", 0) for each in place.status(name)["components"]}
