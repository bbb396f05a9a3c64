"""What the shim is told: everything looked up, what is missing named, and a new revision exactly when an instance would differ."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.documents import encode
from cluster_controller.errors import InvalidInput
from cluster_controller.reconcile.resolve import ModelNeed, component, model_need
from cluster_controller.resources import kinds
from cluster_shim import contract

MODEL = contract.ModelRef(name="emotion", version="1", uid="m", folder="/models/a", files=(contract.ModelFile("model.onnx", "ab" * 32, 3),))


def base(value: bytes) -> str:
    return base64.b64encode(value).decode()


def config(name: str = "cm", binary: dict[str, bytes] | None = None, **data: str) -> dict[tuple[str, str], bytes]:
    document = kinds.ConfigMap(data=data, binary_data={key: base(value) for key, value in (binary or {}).items()})
    return {("ConfigMap", name): encode(document)}


def secret(name: str = "s", **data: bytes) -> dict[tuple[str, str], bytes]:
    return {("Secret", name): encode(kinds.Secret(data={key: base(value) for key, value in data.items()}))}


def resolved(
    found: dict[tuple[str, str], bytes] | None = None, *, model: contract.ModelRef | None = None, node: str = "", **spec: Any
) -> contract.Component:
    made = kinds.Component(**({"name": "serve", "command": ["run"]} | spec))
    return component(made, kinds.Placement(node_name=node), found or {}, model)


def key_of(kind: str, name: str, key: str, optional: bool = False) -> kinds.EnvSource:
    selector = kinds.KeySelector(name=name, key=key, optional=optional)
    return kinds.EnvSource(config_map_key_ref=selector) if kind == "ConfigMap" else kinds.EnvSource(secret_key_ref=selector)


# --- environment


def test_variables_come_from_values_config_maps_and_secrets() -> None:
    env = [
        kinds.EnvVar(name="PLAIN", value="x"),
        kinds.EnvVar(name="FROM_CONFIG", value_from=key_of("ConfigMap", "cm", "level")),
        kinds.EnvVar(name="FROM_SECRET", value_from=key_of("Secret", "s", "password")),
        kinds.EnvVar(name="NOWHERE", value_from=kinds.EnvSource()),
    ]
    found = config(level="info") | secret(password=b"hunter2")
    made = resolved(found, env=env)
    assert made.env == {"PLAIN": "x", "FROM_CONFIG": "info"}
    assert made.secret_env == {"FROM_SECRET": "hunter2"}


def test_whole_objects_become_variables_with_a_prefix() -> None:
    env_from = [
        kinds.EnvFrom(prefix="C_", config_map_ref=kinds.LocalReference(name="cm")),
        kinds.EnvFrom(secret_ref=kinds.LocalReference(name="s")),
        kinds.EnvFrom(),
    ]
    made = resolved(config(a="1", binary={"b": b"\xff"}) | secret(c=b"3"), env_from=env_from)
    assert (made.env, made.secret_env) == ({"C_a": "1", "C_b": "�"}, {"c": "3"})


@pytest.mark.parametrize("secret_first", [True, False])
def test_a_variable_named_by_itself_wins_over_a_whole_object_secret_or_not(secret_first: bool) -> None:
    found = config(A="whole") | secret(A=b"hidden")
    if secret_first:
        made = resolved(
            found, env_from=[kinds.EnvFrom(secret_ref=kinds.LocalReference(name="s"))], env=[kinds.EnvVar(name="A", value="own")]
        )
        assert (made.env, made.secret_env) == ({"A": "own"}, {})
    else:
        whole = [kinds.EnvFrom(config_map_ref=kinds.LocalReference(name="cm"))]
        made = resolved(found, env_from=whole, env=[kinds.EnvVar(name="A", value_from=key_of("Secret", "s", "A"))])
        assert (made.env, made.secret_env) == ({}, {"A": "hidden"})


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_what_is_missing_is_named_and_what_is_optional_is_left_out(kind: str) -> None:
    name = "cm" if kind == "ConfigMap" else "s"
    there = config(other="1") | secret(other=b"1")

    def variable(key: str, optional: bool) -> list[kinds.EnvVar]:
        return [kinds.EnvVar(name="A", value_from=key_of(kind, name, key, optional))]

    with pytest.raises(InvalidInput, match=f"{kind} {name} is not here yet"):
        resolved({}, env=variable("key", False))
    with pytest.raises(InvalidInput, match=f"{kind} {name} has no key key; it has other"):
        resolved(there, env=variable("key", False))
    for found in ({}, there):
        made = resolved(found, env=variable("key", True))
        assert (made.env, made.secret_env) == ({}, {})

    def whole(optional: bool) -> list[kinds.EnvFrom]:
        reference = kinds.LocalReference(name=name, optional=optional)
        return [kinds.EnvFrom(config_map_ref=reference) if kind == "ConfigMap" else kinds.EnvFrom(secret_ref=reference)]

    with pytest.raises(InvalidInput, match=f"{kind} {name} is not here yet"):
        resolved({}, env_from=whole(False))
    assert resolved({}, env_from=whole(True)).env == {}


def test_a_zero_byte_cannot_be_in_a_variable_and_may_be_in_a_file() -> None:
    found = secret(raw=b"a\0b")
    with pytest.raises(InvalidInput, match="A has a zero byte") as refused:
        resolved(found, env=[kinds.EnvVar(name="A", value_from=key_of("Secret", "s", "raw"))])
    assert "a\0b" not in str(refused.value)
    made = resolved(found, files=[kinds.FileMount(path="raw", secret=kinds.FileSource(name="s", key="raw"))])
    assert made.files[0].content == b"a\0b"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({("Secret", "s"): b'{"data":{"k":"a"}}'}, "the value of k is not base64"),
        ({("Secret", "s"): b'{"data":7}'}, "Secret s cannot be read here"),
        ({("ConfigMap", "s"): b"{"}, "ConfigMap s cannot be read here"),
        ({("ConfigMap", "s"): b'{"binaryData":{"k":"a"}}'}, "the value of k is not base64"),
    ],
)
def test_an_object_that_cannot_be_read_is_named_and_stops_nobody_else(found: dict[tuple[str, str], bytes], said: str) -> None:
    kind = next(iter(found))[0]
    with pytest.raises(InvalidInput, match=said):
        resolved(found, env=[kinds.EnvVar(name="A", value_from=key_of(kind, "s", "k"))])


# --- files


def test_one_key_becomes_a_file_and_a_whole_object_a_folder() -> None:
    found = config(b="2", a="1", binary={"c": b"\0"}) | secret(key=b"pem")
    made = resolved(
        found,
        files=[
            kinds.FileMount(path="etc/a", config_map=kinds.FileSource(name="cm", key="a"), mode=0o600),
            kinds.FileMount(path="all", config_map=kinds.FileSource(name="cm")),
            kinds.FileMount(path="tls", secret=kinds.FileSource(name="s")),
            kinds.FileMount(path="none"),
        ],
    )
    assert made.files == (
        contract.File("etc/a", b"1", 0o600),
        contract.File("all/a", b"1"),
        contract.File("all/b", b"2"),
        contract.File("all/c", b"\0"),
        contract.File("tls/key", b"pem", secret=True),
    )


def test_a_file_whose_key_is_missing() -> None:
    def mount(optional: bool) -> list[kinds.FileMount]:
        return [kinds.FileMount(path="x", config_map=kinds.FileSource(name="cm", key="no", optional=optional))]

    with pytest.raises(InvalidInput, match="cm has no key no; it has none") as refused:
        resolved(config(), files=mount(False))
    assert refused.value.field == "files[x]"
    assert resolved(config(), files=mount(True)).files == ()
    with pytest.raises(InvalidInput, match="is not here yet"):
        resolved({}, files=mount(False))


# --- the rest of a component


def test_every_field_reaches_the_shim() -> None:
    made = resolved(
        model=MODEL,
        node="box",
        replicas=3,
        resources=kinds.Resources(cpu="250m", memory="1Mi", accelerators={"gpu": 1}),
        volumes=[kinds.VolumeMount(name="data", path="data")],
        expose=kinds.Expose(port=8500),
        termination_grace_period_seconds=5,
        takes_socket=False,
        liveness=kinds.Probe(http_get=kinds.HttpGet(path="/live", port=81), initial_delay_seconds=4, timeout_seconds=2),
        readiness=kinds.Probe(tcp_socket=kinds.TcpSocket(), period_seconds=3, failure_threshold=5, success_threshold=2),
    )
    assert (made.replicas, made.node, made.port, made.grace_seconds) == (3, "box", 8500, 5.0)
    assert made.takes_socket is False
    assert made.resources == contract.Resources(250, 1024**2, {"gpu": 1})
    assert made.volumes == (contract.Volume("data", "data"),)
    assert made.liveness == contract.Probe(http_path="/live", port=81, initial_delay_seconds=4.0, timeout_seconds=2.0)
    assert made.readiness == contract.Probe(tcp=True, period_seconds=3.0, failure_threshold=5, success_threshold=2)
    assert resolved(takes_socket=False, model=None).takes_socket is False
    assert component(
        kinds.Component(name="m", model=kinds.ModelReference(name="x"), takes_socket=False), kinds.Placement(), {}, MODEL
    ).takes_socket  # a model's worker always does


def test_how_a_model_is_served_reaches_the_shim_and_what_says_nothing_changes_nothing() -> None:
    plain = resolved(model=MODEL)
    assert plain.serving is None and resolved(model=MODEL, serving=kinds.Serving()).revision == plain.revision
    said = kinds.Serving(python_steps=True, batching=False, max_batch=8, queue=5, runs=2, threads=3)
    made = resolved(model=MODEL, serving=said)
    assert made.serving == contract.Serving(python_steps=True, no_batching=True, max_batch=8, queue=5, runs=2, threads=3)
    assert made.revision != plain.revision


def test_what_is_no_process_reaches_the_shim() -> None:
    made = resolved(command=[], container=kinds.ContainerImage(image="shop/web:1", command=["web"], args=["--fast"]))
    assert (made.image, made.command, made.args) == ("shop/web:1", ("web",), ("--fast",))
    assert contract.component_kind(made) == "container"
    objects = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}}]
    made = resolved(command=[], manifests=objects)
    assert [msgspec.json.decode(item) for item in made.manifests] == objects
    assert contract.component_kind(made) == "manifests"


def test_where_it_may_run_reaches_a_scheduler_below() -> None:
    placement = kinds.Placement(
        node_selector={"disk": "ssd"}, architecture="arm64", tolerations=[kinds.Toleration(key="gpu", operator="Exists")]
    )
    made = component(kinds.Component(name="c", command=["x"]), placement, {}, None)
    assert (made.node_labels, made.architecture) == ({"disk": "ssd"}, "arm64")
    assert made.tolerations == (contract.Toleration("gpu", "Exists"),)


def test_a_chart_is_an_archive_and_its_values() -> None:
    archive = contract.ModelRef("web", "1.4.0", "u", "/a", (contract.ModelFile("web-1.4.0.tgz", "1" * 64, 9),), "helm")
    spec = kinds.Component(
        name="shop", helm=kinds.Chart(chart=kinds.ModelReference(name="web"), values={"replicaCount": 2}, hooks="Ignore"), replicas=1
    )
    made = component(spec, kinds.Placement(), {}, archive)
    assert made.model is None
    assert made.chart == contract.Chart(path="/a/web-1.4.0.tgz", sha256="1" * 64, values=b'{"replicaCount":2}', ignore_hooks=True)
    elsewhere = component(spec, kinds.Placement(), {}, msgspec.structs.replace(archive, folder="/b"))
    assert elsewhere.revision == made.revision
    nowhere = component(spec, kinds.Placement(), {}, msgspec.structs.replace(archive, folder=""))
    assert nowhere.chart is not None and nowhere.chart.path == ""
    newer = msgspec.structs.replace(archive, files=(contract.ModelFile("web-1.4.1.tgz", "2" * 64, 9),))
    assert component(spec, kinds.Placement(), {}, newer).revision != made.revision


def test_probes_of_every_kind() -> None:
    assert resolved(liveness=kinds.Probe(http_get=kinds.HttpGet())).liveness == contract.Probe(http_path="/")
    assert resolved(liveness=kinds.Probe(tcp_socket=kinds.TcpSocket(port=9))).liveness == contract.Probe(tcp=True, port=9)
    assert resolved(liveness=kinds.Probe(exec=kinds.Exec(command=["true"]))).liveness == contract.Probe(command=("true",))
    assert resolved().liveness is None


@pytest.mark.parametrize(
    ("cpu", "memory", "wanted"), [("", "", (0, 0)), ("0.1m", "1", (1, 1)), (2, 1.5, (2000, 2)), ("1", "1Ki", (1000, 1024))]
)
def test_quantities_are_rounded_up(cpu: kinds.Quantity, memory: kinds.Quantity, wanted: tuple[int, int]) -> None:
    made = resolved(resources=kinds.Resources(cpu=cpu, memory=memory)).resources
    assert (made.cpu_millis, made.memory_bytes) == wanted


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="much"):
        resolved(resources=kinds.Resources(cpu="much"))


# --- the revision

PARTS: dict[str, list[Any]] = {
    "command": [["run"], ["run", "fast"]],
    "env": [[], [kinds.EnvVar(name="A", value="1")], [kinds.EnvVar(name="A", value="2")], [kinds.EnvVar(name="B", value="1")]],
    "resources": [kinds.Resources(), kinds.Resources(cpu="1"), kinds.Resources(memory="1Mi")],
    "volumes": [[], [kinds.VolumeMount(name="v", path="v")]],
    "expose": [None, kinds.Expose(port=80)],
    "takes_socket": [True, False],
    "liveness": [None, kinds.Probe(tcp_socket=kinds.TcpSocket())],
    "readiness": [None, kinds.Probe(tcp_socket=kinds.TcpSocket())],
    "termination_grace_period_seconds": [30, 5],
}
SECRETS = ["", "one", "two"]
specs = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in PARTS.items()})
worlds = st.tuples(specs, st.sampled_from(SECRETS), st.sampled_from([None, "1", "2"]), st.sampled_from(["", "box"]))


def instance_of(world: tuple[dict[str, Any], str, str | None, str], **changes: Any) -> contract.Component:
    spec, hidden, version, node = world
    found = secret(key=hidden.encode())
    mounts = [kinds.FileMount(path="key", secret=kinds.FileSource(name="s", key="key"))]
    folder = changes.pop("folder", "/a")
    model = msgspec.structs.replace(MODEL, version=version, folder=folder) if version else None
    return resolved(found, model=model, node=node, files=mounts, **(spec | changes))


@given(worlds, worlds)
def test_the_revision_changes_exactly_when_what_an_instance_is_made_of_changes(
    one: tuple[dict[str, Any], str, str | None, str], other: tuple[dict[str, Any], str, str | None, str]
) -> None:
    first, second = instance_of(one), instance_of(other)
    same = msgspec.structs.replace(first, revision="") == msgspec.structs.replace(second, revision="")
    assert (first.revision == second.revision) == same
    assert len(first.revision) == 12 and first.revision.isalnum()


@given(worlds, st.integers(0, 9))
def test_neither_the_count_nor_where_the_model_lies_is_part_of_an_instance(
    world: tuple[dict[str, Any], str, str | None, str], replicas: int
) -> None:
    assert instance_of(world).revision == instance_of(world, replicas=replicas, folder="/elsewhere").revision


@given(st.permutations(["A", "B", "C"]))
def test_the_order_in_which_people_write_variables_is_no_change(names: list[str]) -> None:
    ordered = resolved(env=[kinds.EnvVar(name=name, value=name) for name in sorted(names)])
    assert resolved(env=[kinds.EnvVar(name=name, value=name) for name in names]).revision == ordered.revision


# --- models


def model(*versions: str, name: str = "emotion") -> dict[tuple[str, str], bytes]:
    listed = [
        kinds.ModelVersion(name=version, files=[kinds.ModelFile(path="model.onnx", sha256=version * 64, size=9)]) for version in versions
    ]
    return {("Model", "emotion"): encode(kinds.Model(metadata=kinds.Metadata(name=name, uid="m"), spec=kinds.ModelSpec(versions=listed)))}


def need(found: dict[tuple[str, str], bytes], version: str = "") -> ModelNeed | None:
    return model_need(kinds.Component(name="serve", model=kinds.ModelReference(name="emotion", version=version)), found)


def test_a_model_version_is_looked_up_and_the_last_one_is_the_default() -> None:
    found = model("1", "2")
    first, last = need(found, "1"), need(found)
    assert first is not None and last is not None
    assert (first.version, last.version, first.uid) == ("1", "2", "m")
    assert first.files == (contract.ModelFile("model.onnx", "1" * 64, 9),)
    assert first.key != last.key
    assert need(found, "1") == first and len(first.key) == 32
    nameless = need(model("1", name=""))
    assert nameless is not None and nameless.name == "emotion"


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(InvalidInput, match="model emotion is not here yet"):
        need({})
    with pytest.raises(InvalidInput, match="has no version '3'; it has 1, 2"):
        need(model("1", "2"), "3")
    with pytest.raises(InvalidInput, match="has no version ''; it has none"):
        need(model())
    with pytest.raises(InvalidInput, match="Model emotion cannot be read here"):
        need({("Model", "emotion"): b"[]"})
    assert model_need(kinds.Component(name="c", command=["x"]), {}) is None


def test_a_chart_is_no_model_and_a_model_no_chart() -> None:
    onnx, helm = model("1"), chart("1")
    wanted = kinds.Component(name="shop", helm=kinds.Chart(chart=kinds.ModelReference(name="emotion")))
    found = model_need(wanted, helm)
    assert found is not None and found.runtime == "helm"
    with pytest.raises(InvalidInput, match="version 1 of emotion is no Helm chart; publish its archive with --runtime helm"):
        model_need(wanted, onnx)
    with pytest.raises(InvalidInput, match=r"is no Helm chart.*as one file"):
        model_need(wanted, chart("1", files=2))
    with pytest.raises(InvalidInput, match="version 1 of emotion is a Helm chart; name it under helm"):
        need(helm)


def chart(version: str, files: int = 1) -> dict[tuple[str, str], bytes]:
    archives = [kinds.ModelFile(path=f"{number}.tgz", sha256=version * 64, size=9) for number in range(files)]
    spec = kinds.ModelSpec(versions=[kinds.ModelVersion(name=version, runtime="helm", files=archives)])
    return {("Model", "emotion"): encode(kinds.Model(metadata=kinds.Metadata(name="emotion", uid="m"), spec=spec))}


def test_a_contract_with_more_fields_restarts_nothing() -> None:
    """What the contract says at its default is no part of the revision; this one was recorded before images and charts came."""
    assert resolved(command=["run", "--now"], replicas=2).revision == "41d5c49b0e05"
    assert resolved(takes_socket=False).revision != resolved().revision, "a value that differs from its default is part of it"
