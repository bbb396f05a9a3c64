"""What people write is accepted, or refused with the field and what is right; any JSON at all."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, validate
from cluster_controller.resources.registry import REGISTRY
from cluster_controller.resources.validate import InvalidDocument

DIGEST = "0" * 64


def application(**spec: Any) -> dict[str, Any]:
    component = {"name": "serve", "command": ["/bin/true"], **spec.pop("component", {})}
    return {"metadata": {"name": "emotion", "namespace": "default"}, "spec": {"components": [component], **spec}}


def problems(kind: str, document: dict[str, Any], previous: dict[str, Any] | None = None) -> set[str]:
    try:
        validate.check(kind, document, previous)
    except InvalidDocument as error:
        assert all(each.message and each.reason.startswith("FieldValue") for each in error.problems)
        return {each.field for each in error.problems}
    return set()


def test_the_example_of_the_architecture_is_accepted() -> None:
    document = application(
        component={"command": None, "model": {"name": "emotion", "version": "1"}, "replicas": 3, "resources": {"cpu": "250m",
        "memory": "128Mi"},
                   "env": [{"name": "LEVEL", "value": "info"}], "expose": {"port": 8500}},
        placement={"clusterSelector": {"matchLabels": {"tier": "edge"}}, "strategy": "Divided", "onUnreachable": {"action": "Keep"}},
    )  # fmt: skip
    found = validate.decode("Application", msgspec.json.encode(document))
    assert isinstance(found, kinds.Application)
    assert found.spec.components[0].model == kinds.ModelReference(name="emotion", version="1")
    assert problems("Application", application(rollout={"wave": 1, "pauseSeconds": 10})) == set()


C = "spec.components[0]"
P = "spec.placement"
OBJECT = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}


def instead(fields: dict[str, Any]) -> dict[str, Any]:
    """A component that is no command."""
    return {"command": []} | fields


@pytest.mark.parametrize(
    "component",
    [
        {"container": {"image": "registry.example:5000/shop/web:1.4@sha256:" + "0" * 64, "args": ["--fast"]}, "expose": {"port": 80}},
        {"manifests": [OBJECT, OBJECT | {"metadata": {"name": "b", "namespace": "other"}}], "replicas": 0},
        {"helm": {"chart": {"name": "web", "version": "1.4.0"}, "values": {"replicaCount": 2, "deep": {"er": [1]}}, "hooks": "Ignore"}},
    ],
)
def test_what_only_members_with_an_api_of_their_own_can_run_is_accepted(component: dict[str, Any]) -> None:
    apply = {"drift": "Report", "conflicts": "Force", "immutableFields": "Recreate"}
    found = validate.decode("Application", msgspec.json.encode(application(component=instead(component), apply=apply)))
    assert isinstance(found, kinds.Application)
    assert found.spec.apply == kinds.ApplyPolicy(drift="Report", conflicts="Force", immutable_fields="Recreate")


@pytest.mark.parametrize(
    ("component", "field"),
    [({"replcas": 1}, f"{C}.replcas"), ({"replicas": "x"}, f"{C}.replicas"), ({"replicas": -1}, f"{C}.replicas"),
     ({"replicas": 10**6}, f"{C}.replicas"),
     ({"container": {"image": "x"}}, C), ({"manifests": [{}]}, C), ({"helm": {}}, f"{C}.helm"),
     (instead({"container": {}}), f"{C}.container"), (instead({"container": {"image": "a b"}}), f"{C}.container.image"),
     (instead({"container": {"image": "x" * 513}}), f"{C}.container.image"),
     (instead({"container": {"image": "x", "args": ["\0"]}}), f"{C}.container.args[0]"),
     (instead({"container": {"image": "x", "command": ["a", "\0"]}}), f"{C}.container.command[1]"),
     (instead({"manifests": {"kind": "Pod"}}), f"{C}.manifests"), (instead({"manifests": ["x"]}), f"{C}.manifests[0]"),
     (instead({"manifests": [OBJECT | {"apiVersion": 1}]}), f"{C}.manifests[0].apiVersion"),
     (instead({"manifests": [OBJECT, OBJECT | {"kind": ""}]}), f"{C}.manifests[1].kind"),
     (instead({"manifests": [OBJECT | {"metadata": {"generateName": "x-"}}]}), f"{C}.manifests[0].metadata.name"),
     (instead({"manifests": [OBJECT], "replicas": 2}), f"{C}.replicas"),
     (instead({"manifests": [OBJECT], "expose": {"port": 80}}), f"{C}.expose"),
     (instead({"manifests": [OBJECT], "envFrom": [{"secretRef": {"name": "s"}}]}), f"{C}.envFrom"),
     (instead({"helm": {"chart": {"name": "A_"}}}), f"{C}.helm.chart.name"),
     (instead({"helm": {"chart": {"name": "a", "version": "/"}}}), f"{C}.helm.chart.version"),
     (instead({"helm": {"chart": {"name": "a"}, "hooks": "Run"}}), f"{C}.helm.hooks"),
     (instead({"helm": {"chart": {"name": "a"}}, "volumes": [{"name": "v", "path": "a"}]}), f"{C}.volumes"),
     ({"command": []}, C), ({"model": {"name": "m"}}, C), ({"command": [""]}, f"{C}.command[0]"),
    ({"serving": {"pythonSteps": True}}, f"{C}.serving"), ({"command": ["a\0"]}, f"{C}.command[0]"),
     ({"name": "A"}, f"{C}.name"), ({"name": "a.b"}, f"{C}.name"), ({"name": "x" * 64}, f"{C}.name"),
     ({"resources": {"cpu": "-1"}}, f"{C}.resources.cpu"), ({"resources": {"memory": "1e99"}}, f"{C}.resources.memory"),
     ({"resources": {"accelerators": {"a b": 1}}}, f"{C}.resources.accelerators.a b"),
     ({"env": [{"name": "1A"}]}, f"{C}.env[0].name"), ({"env": [{"name": "A", "value": "x", "valueFrom": {}}]}, f"{C}.env[0]"),
     ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "B", "key": "/"}}}]}, f"{C}.env[0].valueFrom.name"),
     ({"envFrom": [{}]}, f"{C}.envFrom[0]"), ({"envFrom": [{"prefix": "=", "secretRef": {"name": "s"}}]}, f"{C}.envFrom[0].prefix"),
     ({"files": [{"path": "../x", "secret": {"name": "s"}}]}, f"{C}.files[0].path"),
     ({"files": [{"path": "/x", "secret": {"name": "s"}}]}, f"{C}.files[0].path"),
     ({"files": [{"path": "x"}]}, f"{C}.files[0]"),
     ({"files": [{"path": "x", "secret": {"name": "s"}, "mode": 0o1777}]}, f"{C}.files[0].mode"),
     ({"files": [{"path": "x", "secret": {"name": "s"}}] * 2}, f"{C}.files[1]"),
     ({"volumes": [{"name": "v", "path": "a/../b"}]}, f"{C}.volumes[0].path"), ({"expose": {"port": 70000}}, f"{C}.expose.port"),
     ({"liveness": {}}, f"{C}.liveness"), ({"liveness": {"httpGet": {}}}, f"{C}.liveness.httpGet.port"),
     ({"readiness": {"httpGet": {"path": "x", "port": 1}}}, f"{C}.readiness.httpGet.path"),
     ({"readiness": {"exec": {"command": []}}}, f"{C}.readiness.exec.command"),
     ({"readiness": {"tcpSocket": {"port": 1}, "exec": {"command": ["x"]}}}, f"{C}.readiness"),
     ({"liveness": {"grpc": {}}}, f"{C}.liveness.grpc")],
)  # fmt: skip
def test_a_bad_component_is_refused_by_its_field(component: dict[str, Any], field: str) -> None:
    assert field in problems("Application", application(component=component))


@pytest.mark.parametrize(
    ("placement", "field"),
    [({"onUnreachable": {"action": "Replace"}, "strategy": "Duplicated"}, f"{P}.onUnreachable.action"),
     ({"onUnreachable": {"action": "Keep", "afterSeconds": 3}}, f"{P}.onUnreachable.afterSeconds"),
     ({"strategy": "Random"}, f"{P}.strategy"),
     ({"clusterSelector": {"matchLabels": {"-": "x"}}}, f"{P}.clusterSelector"), ({"clusterName": "a", "clusterNames": ["b"]}, P),
     ({"clusterSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, f"{P}.clusterSelector.matchExpressions[0].values"),
     ({"tolerations": [{}]}, f"{P}.tolerations[0].operator"),
     ({"tolerations": [{"operator": "Exists", "value": "x"}]}, f"{P}.tolerations[0].value"),
     ({"tolerations": [{"operator": "Exists", "tolerationSeconds": 3}]}, f"{P}.tolerations[0].tolerationSeconds"),
     ({"nodeName": "a b"}, f"{P}.nodeName"), ({"nodeSelector": {"a": "-"}}, f"{P}.nodeSelector.a"),
     ({"architecture": "AMD64"}, f"{P}.architecture"),
     ({"spread": {}}, f"{P}.spread")],
)  # fmt: skip
def test_a_bad_placement_is_refused_by_its_field(placement: dict[str, Any], field: str) -> None:
    assert field in problems("Application", application(placement=placement))


@pytest.mark.parametrize(
    ("metadata", "field"),
    [({"name": ""}, "metadata.name"), ({"name": "Bad_Name"}, "metadata.name"), ({"name": "a.b"}, "metadata.name"),
     ({"name": "x" * 64}, "metadata.name"),
     ({"namespace": "Ä"}, "metadata.namespace"), ({"labels": {"a": "-"}}, "metadata.labels.a"),
     ({"labels": {"a/b/c": "x"}}, "metadata.labels.a/b/c"),
     ({"labels": {"a": 1}}, "metadata.labels[]"), ({"annotations": {"a": "x" * 300_000}}, "metadata.annotations"),
     ({"finalizers": ["x"]}, "metadata.finalizers[0]"),
     ({"annotations": {" ": "x"}}, "metadata.annotations. "), ({"nam": "x"}, "metadata.nam")],
)  # fmt: skip
def test_bad_metadata_is_refused_by_its_field(metadata: dict[str, Any], field: str) -> None:
    document = application()
    document["metadata"] |= metadata
    assert field in problems("Application", document)


def test_several_problems_are_named_together() -> None:
    found = problems("Application", application(component={"name": "A", "resources": {"cpu": "x"}}, placement={"nodeName": " "}))
    assert found == {f"{C}.name", f"{C}.resources.cpu", f"{P}.nodeName"}


def test_components_are_told_apart() -> None:
    two = {"name": "a", "command": ["x"], "expose": {"port": 80}}
    document = application()
    document["spec"]["components"] = [two, two]
    assert problems("Application", document) == {"spec.components[1]", "spec.components.expose.port[1]"}
    document["spec"]["components"] = []
    assert problems("Application", document) == {"spec.components"}
    document["spec"]["components"] = [{"name": f"c{number}", "command": ["x"]} for number in range(21)]
    assert problems("Application", document) == {"spec.components"}


def model(**version: Any) -> dict[str, Any]:
    file = {"path": "model.onnx", "sha256": DIGEST, "size": 3}
    return {"metadata": {"name": "m", "namespace": "default"}, "spec": {"versions": [{"name": "1", "files": [file], **version}]}}


def test_models() -> None:
    assert problems("Model", model()) == set()
    assert problems("Model", model(files=[])) == {"spec.versions[0].files"}
    assert problems("Model", model(name="a/b")) == {"spec.versions[0].name"}
    assert problems("Model", model(runtime="torch")) == {"spec.versions[0].runtime"}
    assert problems("Model", model(variants=[{}])) == {"spec.versions[0].variants"}
    assert problems("Model", model(files=[{"path": "../m", "sha256": DIGEST, "size": 1}])) == {"spec.versions[0].files[0].path"}
    assert problems("Model", model(files=[{"path": "m", "sha256": "xyz", "size": 1}])) == {"spec.versions[0].files[0].sha256"}
    assert problems("Model", {"metadata": {"name": "m", "namespace": "n"}, "spec": {"versions": []}}) == {"spec.versions"}
    changed = model(files=[{"path": "model.onnx", "sha256": "1" * 64, "size": 3}])
    assert problems("Model", changed, model()) == {"spec.versions[0]"}
    assert problems("Model", model(description="words may change"), model()) == set()


def named(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "x", "namespace": "default"}, **fields}


def test_config_maps_and_secrets() -> None:
    good = base64.b64encode(b"x").decode()
    assert problems("ConfigMap", named(data={"a": "b"}, binaryData={"c": good})) == set()
    assert problems("ConfigMap", named(data={"a/b": "x"})) == {"data.a/b"}
    assert problems("ConfigMap", named(data={"..": "x"})) == {"data..."}
    assert problems("ConfigMap", named(binaryData={"a": "?"})) == {"binaryData.a"}
    assert problems("ConfigMap", named(data={"a": ""}, binaryData={"a": good})) == {"binaryData.a"}
    assert problems("ConfigMap", named(data={"a": "x" * (2**20 + 1)})) == {"data"}
    assert problems("ConfigMap", named(data={"a": "c"}), named(data={"a": "b"}, immutable=True)) == {"immutable"}
    assert problems("Secret", named(data={"a": good}, type="Opaque")) == set()
    assert problems("Secret", named(data={"a": "not base64!"})) == {"data.a"}
    assert problems("Secret", named(type="b"), named(type="a")) == {"type"}
    assert problems("Secret", named(data={}), named(data={"a": good}, immutable=True)) == {"immutable"}


def test_people_tokens_clusters_and_events() -> None:
    def bare(**spec: Any) -> dict[str, Any]:
        return {"metadata": {"name": "x"}, "spec": spec}

    assert problems("User", bare(grants=[{"role": "view"}])) == set()
    assert problems("User", bare()) == {"spec.grants"}
    assert problems("User", bare(grants=[{"role": "root"}])) == {"spec.grants[0].role"}
    assert problems("User", bare(grants=[{"role": "view", "namespace": "A"}])) == {"spec.grants[0].namespace"}
    grants = [{"role": "view"}]
    assert problems("User", bare(grants=grants), bare(grants=grants, revoked=True)) == {"spec.revoked"}
    assert problems("User", bare(grants=grants, credential="token"), bare(grants=grants)) == {"spec.credential"}
    assert problems("JoinToken", bare(parent="region-a", labels={"a": "b"})) == set()
    assert problems("JoinToken", bare(parent="A B", labels={"-": "b"})) == {"spec.parent", "spec.labels.-"}
    assert problems("JoinToken", bare(parent="b"), bare(parent="a")) == {"spec"}
    assert problems("JoinToken", bare(expiresAfterSeconds=0)) == {"spec.expiresAfterSeconds"}
    assert problems("Cluster", bare(taints=[{"key": "a", "effect": "NoExecute", "value": "-"}])) == {"spec.taints[0].value"}
    assert problems("Cluster", bare(taints=[{"key": "a", "effect": "NoExecute"}] * 2)) == {"spec.taints[1]"}
    assert problems("Event", {"metadata": {"name": "pod.17a", "namespace": "n"}, "involvedObject": {"namespace": "m"}}) == {
        "involvedObject.namespace"
    }
    assert problems("Event", {"metadata": {"name": "e", "namespace": "n"}, "message": "x" * 5000}) == {"message"}


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b"[]", "no JSON object"), (b'"x"', "no JSON object"),
     (b"{\"a\":\xff}", "not JSON|not UTF-8"), (b'{"a":"\xff"}', "not UTF-8"),
     (b'{"a":NaN}', "not JSON"), (b'{"a":1e999}', "not JSON"), (b'{"a":"\\ud800"}', "not JSON"), (b"[" * 10_000, "nested"),
     (b'{"a":' * 60 + b"1" + b"}" * 60, "nested"),
     (b" " * (2 * 1024 * 1024), "bytes; at most")],
)  # fmt: skip
def test_bytes_that_are_no_document(body: bytes, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        validate.decode("Application", body)


def test_nulls_are_absent_and_unknown_fields_survive_reading() -> None:
    document = application(component={"env": None, "liveness": None}, placement=None)
    assert validate.decode("Application", msgspec.json.encode(document))
    document["spec"]["ofTheNextVersion"] = {"x": 1}
    found = validate.read(
        kinds.Application, msgspec.json.encode(document | {"spec": {**document["spec"], "placement": {}, "components": []}})
    )
    assert found.metadata.name == "emotion"
    with pytest.raises(InvalidInput, match="cannot be read"):
        validate.read(kinds.Application, b"{}")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=30,
)
_FIELDS = st.sampled_from(
    ["metadata", "spec", "status", "data", "components", "placement", "name", "labels", "versions", "files", "grants", "replicas"]
)
_SHAPED = st.recursive(_JSON, lambda inner: st.dictionaries(_FIELDS, inner, max_size=5) | st.lists(inner, max_size=2), max_leaves=30)


@given(st.sampled_from(sorted(REGISTRY)), st.dictionaries(_FIELDS, _SHAPED, max_size=6))
def test_any_json_is_accepted_or_refused_with_causes(kind: str, document: dict[str, Any]) -> None:
    try:
        validate.check(kind, document)
    except InvalidDocument as error:
        assert error.problems and len(error.problems) <= 60
