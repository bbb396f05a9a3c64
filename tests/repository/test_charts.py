"""The charts lint, render what they should, refuse what cannot be, and say the same as the code they are made from."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from banyanctl import manifest
from cluster_controller.config import Config
from cluster_controller.identity import token as tokens
from cluster_shim.kubernetes import rights
from cluster_shim.kubernetes.render import Settings
from cluster_shim.kubernetes.rights import Profile
from tools import charts, generated

ROOT = Path(__file__).parent.parent.parent
HELM = ROOT / "helm"
EDGE = {"cluster": {"name": "edge-k8s"}, "join": {"token": "banyan1abc"}}
TREE = {"cluster": {"name": "root"}, "tunnel": {"advertise": ["hq.example.com:10000"]}}
CHARTS = {"banyan-edge": EDGE, "banyan": TREE}
POD_KEYS = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

Object = dict[str, Any]


def merged(base: Object, more: Object) -> Object:
    found = dict(base)
    for key, value in more.items():
        found[key] = merged(found[key], value) if isinstance(value, dict) and isinstance(found.get(key), dict) else value
    return found


def helm(chart: str, values: Object, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [
        str(Path(sys.executable).with_name("helm")),
        "template",
        "banyan-edge",
        str(HELM / chart),
        "--namespace",
        "site",
        "-f",
        "-",
        *more,
    ]
    return subprocess.run(argv, capture_output=True, text=True, input=json.dumps(values), timeout=60, check=False)


def render(chart: str, more: Object | None = None, *arguments: str) -> list[Object]:
    done = helm(chart, merged(CHARTS[chart], more or {}), *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


# --- the charts ---


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_finds_nothing_to_complain_of(chart: str) -> None:
    argv = [str(Path(sys.executable).with_name("helm")), "lint", "--strict", str(HELM / chart), "-f", "-"]
    done = subprocess.run(argv, capture_output=True, text=True, input=json.dumps(CHARTS[chart]), timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_has_the_version_of_what_it_installs(chart: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    about = yaml.safe_load((HELM / chart / "Chart.yaml").read_text(encoding="utf-8"))
    assert (about["version"], about["appVersion"]) == (version, version)


@pytest.mark.parametrize("chart", CHARTS)
def test_every_value_is_in_the_schema_and_every_one_in_the_schema_has_a_default(chart: str) -> None:
    values = yaml.safe_load((HELM / chart / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((HELM / chart / "values.schema.json").read_text(encoding="utf-8"))

    def compare(value: Object, part: Object, path: str) -> None:
        known = set(part["properties"]) - {"global", "claims"}
        assert known == set(value), path
        for key in known:
            if part["properties"][key].get("properties"):
                compare(value[key], part["properties"][key], f"{path}.{key}")

    compare(values, schema, chart)


WRONG: list[tuple[str, Object, str]] = [
    ("banyan-edge", {"cluster": {"name": ""}}, "cluster"),
    ("banyan-edge", {"cluster": {"name": "Edge_1"}}, "cluster"),
    ("banyan-edge", {"cluster": {"shim": "process"}}, "shim"),
    ("banyan-edge", {"cluster": {"labels": {"a": "b,c=d"}}}, "labels"),
    ("banyan-edge", {"cluster": {"labels": {"a": 1}}}, "labels"),
    ("banyan-edge", {"join": {"token": ""}}, "token"),
    ("banyan-edge", {"join": {"token": "hunter2"}}, "token"),
    ("banyan-edge", {"rights": {"profile": "everything"}}, "profile"),
    ("banyan-edge", {"rights": {"namespaces": "shop"}}, "namespaces"),
    ("banyan-edge", {"rights": {"extraRules": [{"resources": ["widgets"]}]}}, "extraRules"),
    ("banyan-edge", {"image": {"digest": "sha256:1"}}, "digest"),
    ("banyan-edge", {"persistence": {"size": "lots"}}, "size"),
    ("banyan-edge", {"persistence": {"hostPath": "relative"}}, "hostPath"),
    ("banyan-edge", {"networkPolicy": {"parentCidrs": ["hq.example.com"]}}, "parentCidrs"),
    ("banyan-edge", {"replicas": 2}, "replicas"),
    ("banyan", {"tunnel": {"advertise": []}}, "advertise"),
    ("banyan", {"tunnel": {"advertise": ["hq.example.com"]}}, "advertise"),
    ("banyan", {"role": "region"}, "token"),
    ("banyan", {"role": "leaf"}, "role"),
    ("banyan", {"tunnel": {"service": {"port": 0}}}, "port"),
]


@pytest.mark.parametrize(("chart", "values", "named"), WRONG)
def test_what_cannot_be_is_refused_before_anything_is_made(chart: str, values: Object, named: str) -> None:
    done = helm(chart, merged(CHARTS[chart], values))
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("more", [{}, {"persistence": {"hostPath": "/srv/banyan"}}, {"podLabels": {"a": "b"}, "priorityClassName": "high"}])
def test_its_pod_asks_for_no_privilege(chart: str, more: Object) -> None:
    deployment = only(render(chart, more), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["initContainers"] + pod["containers"]:
        assert container["securityContext"] == POD_KEYS
        assert "limits" in container["resources"]
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
    assert pod["automountServiceAccountToken"] is (chart == "banyan-edge")


@pytest.mark.parametrize("chart", CHARTS)
def test_every_variable_is_a_setting_of_the_controller(chart: str) -> None:
    deployment = only(render(chart, {"settings": {"heartbeat_seconds": "10"}}), "Deployment")
    known = {f"BANYAN_{name.upper()}" for name in Config.__struct_fields__}
    for container in deployment["spec"]["template"]["spec"]["initContainers"] + deployment["spec"]["template"]["spec"]["containers"]:
        assert set(environment(container)) <= known
        assert environment(container)["BANYAN_HEARTBEAT_SECONDS"] == "10"


def test_the_cluster_is_used_as_the_values_say() -> None:
    more = {"cluster": {"labels": {"zone": "north", "tier": "edge"}, "kubernetes": {"cache": "emptyDir"}}, "modelFiles": {"port": 9000}}
    objects = render("banyan-edge", more)
    found = environment(only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0])
    assert found["BANYAN_LABELS"] == "tier=edge,zone=north"
    kubernetes = dict(pair.split("=", 1) for pair in found["BANYAN_KUBERNETES"].split(","))
    assert set(kubernetes) <= set(Settings.__struct_fields__)
    assert kubernetes == {"cache": "emptyDir", "files_url": "https://banyan-edge-files.site.svc:9000", "worker_image": "banyan-edge:0.1.0"}
    service = only(objects, "Service", "banyan-edge-files")
    assert (service["spec"]["type"], service["spec"]["ports"][0]["port"]) == ("ClusterIP", 9000)


def test_uninstalling_keeps_who_the_cluster_is_unless_told_otherwise() -> None:
    assert only(render("banyan-edge"), "PersistentVolumeClaim")["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in only(render("banyan-edge", {"persistence": {"keep": False}}), "PersistentVolumeClaim")["metadata"]
    objects = render("banyan-edge", {"persistence": {"existingClaim": "mine"}})
    assert "PersistentVolumeClaim" not in {each["kind"] for each in objects}
    volumes = only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"] == {"claimName": "mine"}


def test_a_token_of_ones_own_secret_is_not_in_the_release() -> None:
    done = helm("banyan-edge", {"cluster": {"name": "edge"}, "join": {"existingSecret": "mine"}})
    assert "banyan1" not in done.stdout
    assert "secretName: mine" in done.stdout


def test_the_network_policy_lets_out_what_the_controller_needs_and_in_what_asks_for_model_files() -> None:
    more = {"networkPolicy": {"parentPorts": [443], "parentCidrs": ["192.0.2.0/24"], "apiServerCidrs": ["10.0.0.1/32"]}}
    policy = only(render("banyan-edge", more), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "files", "protocol": "TCP"}]}]
    names, parent, server, pods = policy["egress"]
    assert {each["port"] for each in names["ports"]} == {53}
    assert parent == {"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}
    assert [each["port"] for each in server["ports"]] == [443, 6443]
    assert pods == {"to": [{"namespaceSelector": {}}]}
    assert only(render("banyan"), "NetworkPolicy")["spec"]["egress"] == []
    assert "NetworkPolicy" not in {each["kind"] for each in render("banyan", {"networkPolicy": {"enabled": False}})}


def test_a_root_is_made_once_and_a_region_joins_once() -> None:
    def first(objects: list[Object]) -> list[str]:
        found: list[str] = only(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"][0]["args"]
        return found

    assert first(render("banyan")) == ["init", "root", "--if-new"]
    region = render("banyan", {"role": "region", "cluster": {"name": "north"}, "join": {"token": "banyan1abc"}})
    assert first(region) == ["join", "@/etc/banyan/join/token", "--name=north", "--if-new", "--no-run"]
    assert only(region, "Service", "banyan-edge-tunnel")["spec"]["type"] == "LoadBalancer"


# --- rights ---


def bound(objects: list[Object]) -> dict[tuple[str, str], list[Object]]:
    """(role, namespace or "" for everywhere) → its rules, for what the release's ServiceAccount is bound to."""
    roles = {each["metadata"]["name"]: each.get("rules", []) for each in objects if each["kind"] == "ClusterRole"}
    return {
        (each["roleRef"]["name"], each["metadata"].get("namespace", "")): roles[each["roleRef"]["name"]]
        for each in objects
        if each["kind"] in ("ClusterRoleBinding", "RoleBinding") and each["subjects"][0]["kind"] == "ServiceAccount"
    }


@pytest.mark.parametrize("profile", rights.PROFILES)
def test_the_chart_grants_what_the_code_says_and_nothing_else(profile: Profile) -> None:
    namespaces = ["shop", "cameras"] if profile == "namespaced" else []
    found = bound(render("banyan-edge", {"rights": {"profile": profile, "namespaces": namespaces}}))
    places = {grant.name: [""] if grant.everywhere else [grant.within] if grant.within else namespaces for grant in rights.grants(profile)}
    expected = {
        (f"banyan-edge-{grant.name}", place): [rule.as_policy() for rule in grant.rules]
        for grant in rights.grants(profile)
        for place in places[grant.name]
    }
    added = {("banyan-edge-applications", place): [] for place in (namespaces or [""])}
    assert found == expected | added


def test_people_are_bound_to_the_roles_that_the_site_chose() -> None:
    def people(more: Object) -> set[tuple[str, str, str, str]]:
        return {
            (each["kind"], each["metadata"].get("namespace", ""), each["subjects"][0]["name"], each["roleRef"]["name"])
            for each in render("banyan-edge", more)
            if each["kind"].endswith("Binding") and each["subjects"][0]["kind"] == "Group"
        }

    assert people({}) == {("ClusterRoleBinding", "", group, role) for group, role in rights.ROLES.items()}
    inside = people({"rights": {"profile": "namespaced", "namespaces": ["shop"]}, "people": {"admin": "", "edit": "mine"}})
    assert inside == {("RoleBinding", "shop", "banyan:edit", "mine"), ("RoleBinding", "shop", "banyan:view", "view")}
    closed = render("banyan-edge", {"people": {"enabled": False}})
    assert not [each for each in closed if "people" in each["metadata"]["name"] or "enter" in each["metadata"]["name"]]
    assert "impersonate" not in json.dumps(closed)


def test_a_site_adds_rights_by_values_or_by_a_label() -> None:
    rule = {"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get", "create", "patch", "delete"]}
    objects = render("banyan-edge", {"rights": {"extraRules": [rule]}})
    extra = only(objects, "ClusterRole", "banyan-edge-extra")
    assert extra["rules"] == [rule]
    selector = only(objects, "ClusterRole", "banyan-edge-applications")["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"]
    assert selector == rights.EXTRA
    assert selector.items() <= extra["metadata"]["labels"].items()


def test_no_roles_are_made_where_somebody_else_makes_them() -> None:
    kinds = {each["kind"] for each in render("banyan-edge", {"rights": {"create": False}})}
    assert not {kind for kind in kinds if "Role" in kind}
    usage = render("banyan-edge", {"rights": {"kubeletUsage": False}})
    assert "nodes/proxy" not in json.dumps(usage)


# --- the manifest ---


def a_token(*addresses: str) -> str:
    made = tokens.new(
        parent="a" * 26, parent_name="root", addresses=addresses or ("192.0.2.1:10000",), tree_ca_digest="00" * 32, identifier="edge-k8s"
    )
    return tokens.encode(made)


def test_what_is_made_from_other_files_is_as_they_say_now() -> None:
    assert generated.check(charts.files()) == 0


PLAIN = {"annotations", "labels"}


def bare(objects: list[Object]) -> list[Object]:
    """Without labels and annotations that only Helm has a use for, in an order of their own."""
    found = []
    for each in objects:
        meta = dict(each["metadata"])
        meta["labels"] = {k: v for k, v in meta.get("labels", {}).items() if k not in ("helm.sh/chart", "app.kubernetes.io/managed-by")}
        meta["annotations"] = {k: v for k, v in meta.get("annotations", {}).items() if not k.startswith("helm.sh/")}
        found.append({**each, "metadata": meta})
    return sorted(found, key=lambda each: json.dumps(each, sort_keys=True))


@pytest.mark.parametrize("profile", rights.PROFILES)
def test_the_manifest_is_what_the_chart_renders(profile: Profile) -> None:
    word = a_token("hq.example.com:443", "192.0.2.1:10000")
    targets = ("shop", "cameras") if profile == "namespaced" else ()
    made = manifest.write(
        manifest.Wanted(
            token=word,
            name="edge-k8s",
            image="registry.example.com:5000/banyan/edge:1.2",
            namespace="site",
            shim="k3s",
            profile=profile,
            targets=targets,
            labels={"zone": "north", "tier": "edge"},
            kubernetes={"cache": "pvc:models"},
            proxy="http://ann:s3cret@proxy.example.com:3128",
            storage_class="fast",
        )
    )
    values = {
        "cluster": {"name": "edge-k8s", "shim": "k3s", "labels": {"zone": "north", "tier": "edge"}, "kubernetes": {"cache": "pvc:models"}},
        "join": {"token": word},
        "proxy": "http://ann:s3cret@proxy.example.com:3128",
        "image": {"repository": "registry.example.com:5000/banyan/edge", "tag": "1.2"},
        "persistence": {"storageClass": "fast"},
        "rights": {"profile": profile, "namespaces": list(targets)},
        "networkPolicy": {"parentPorts": [443, 3128, 10000]},
    }
    namespace, *objects = [document for document in yaml.safe_load_all(made) if document]
    assert namespace == {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "site"}}
    assert bare(objects) == bare(render("banyan-edge", values))
    assert not re.findall(r"zz-|64999|helm", made)


def test_the_manifest_with_nothing_chosen_is_the_chart_with_nothing_chosen() -> None:
    word = a_token()
    namespace, *objects = yaml.safe_load_all(manifest.write(manifest.Wanted(token=f" {word[:40]}\n{word[40:].upper()} ", name="edge-k8s")))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    argv = [
        str(Path(sys.executable).with_name("helm")),
        "template",
        "banyan-edge",
        str(HELM / "banyan-edge"),
        "-n",
        "banyan-system",
        "-f",
        "-",
    ]
    values = json.dumps({"cluster": {"name": "edge-k8s"}, "join": {"token": word}})
    done = subprocess.run(argv, capture_output=True, text=True, input=values, timeout=60, check=True)
    assert bare(objects) == bare([document for document in yaml.safe_load_all(done.stdout) if document])


def test_a_namespace_that_is_there_already_is_not_written() -> None:
    for there in ("default", "kube-system"):
        objects = list(yaml.safe_load_all(manifest.write(manifest.Wanted(token=a_token(), name="edge", namespace=there))))
        assert "Namespace" not in {each["kind"] for each in objects}
