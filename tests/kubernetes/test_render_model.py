"""A component of a model as objects: the init step, the cache, the server, and what changes a pod and what does not."""

import base64
from typing import Any

import msgspec
import pytest

from cluster_shim.contract import Component, ModelFile, ModelRef, Resources, Serving, ShimError, Work
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.render import Settings, Source
from edge_ai import fetch as edge_fetch

FILES = (ModelFile("model.onnx", "a" * 64, 243), ModelFile("data/weights.bin", "b" * 64, 7))
SOURCE = Source("https://192.168.1.5:8444", "uid.mac", "-----BEGIN CERTIFICATE-----")
SETTINGS = Settings(worker_image="registry/banyan-edge:1")


def work(**component: Any) -> Work:
    model = component.pop("model", ModelRef("m", "3", "model-uid", "/data/m", FILES))
    found = Component(**{"name": "serve", "replicas": 2, "revision": "r1", "model": model, "port": 8500} | component)
    return Work(uid="app-uid", name="emotion", namespace="shop", origin="root", version=1, components=(found,))


def objects(wanted: Work, settings: Settings = SETTINGS, source: Source | None = SOURCE) -> dict[str, dict[str, Any]]:
    return {item.object["kind"]: item.object for item in render.render(wanted, settings, source)}


def template(wanted: Work, settings: Settings = SETTINGS, source: Source | None = SOURCE) -> dict[str, Any]:
    found: dict[str, Any] = objects(wanted, settings, source)["Deployment"]["spec"]["template"]
    return found


def test_the_init_step_fetches_what_the_server_verifies_and_only_it_writes() -> None:
    pod = template(work())["spec"]
    (fetch,), (server,) = pod["initContainers"], pod["containers"]
    assert fetch["command"] == ["python3", "-m", "edge_ai.fetch"]
    folder = fetch["args"][1]
    assert f"--file=model.onnx={'a' * 64}:243" in fetch["args"] and f"--file=data/weights.bin={'b' * 64}:7" in fetch["args"]
    assert server["args"][server["args"].index("--model-folder") + 1] == folder
    assert f"--digest=model.onnx={'a' * 64}" in server["args"]
    mount, mark = server["volumeMounts"]
    assert mount["readOnly"] and folder.startswith(mount["mountPath"] + "/")
    # What a server may write: that it uses the folder.
    assert mark == {"name": "models", "mountPath": render.IN_USE_MOUNT, "subPath": edge_fetch.IN_USE}
    assert server["args"][server["args"].index("--in-use") + 1] == f"{render.IN_USE_MOUNT}/{folder.rpartition('/')[2]}"
    assert "readOnly" not in fetch["volumeMounts"][0]
    assert fetch["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert pod["automountServiceAccountToken"] is False


def test_the_model_has_its_own_name_there_as_everywhere_and_is_served_as_the_application_says() -> None:
    """A manifest that moves between members is asked at the same path."""
    args = template(work())["spec"]["containers"][0]["args"]
    assert args[args.index("--name") + 1] == "m"
    assert template(work(serving=None)) == template(work())
    served = template(work(serving=Serving(python_steps=True, no_batching=True, max_batch=8, queue=5, runs=2, threads=3)))
    wanted = ["--python-steps", "--no-batching", "--max-batch", "8", "--queue", "5", "--runs", "2", "--threads", "3"]
    assert served["spec"]["containers"][0]["args"] == args + wanted


def test_the_token_is_in_a_secret_for_the_init_step_alone() -> None:
    made = objects(work())
    data = {key: base64.b64decode(value).decode() for key, value in made["Secret"]["data"].items()}
    assert data == {"url": SOURCE.url, "token": SOURCE.token, "ca.pem": SOURCE.ca}
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert SOURCE.token not in msgspec.json.encode(made["Deployment"]).decode()
    assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["models", "models"]
    assert [mount["name"] for mount in pod["initContainers"][0]["volumeMounts"]] == ["models", "fetch"]


def test_another_address_restarts_nothing_and_other_files_do() -> None:
    before = template(work())
    assert template(work(), source=Source("https://other:1", "t", "ca")) == before
    other = ModelRef("m", "3", "model-uid", "/data/m", (ModelFile("model.onnx", "c" * 64, 243),))
    assert template(work(model=other)) != before
    moved = ModelRef("m", "3", "model-uid", "/elsewhere", FILES)  # where the controller keeps them is nothing to pods
    assert template(work(model=moved)) == before
    # A Secret of the application itself is another matter.
    assert template(work(secret_env={"WORD": "a"})) != template(work(secret_env={"WORD": "b"}))


def test_without_a_controller_to_ask_the_cache_has_to_do() -> None:
    made = objects(work(), source=None)
    assert "Secret" not in made
    assert "--source" not in made["Deployment"]["spec"]["template"]["spec"]["initContainers"][0]["args"]


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ("hostPath:/srv/models", {"hostPath": {"path": "/srv/models", "type": "DirectoryOrCreate"}}),
        ("pvc:models", {"persistentVolumeClaim": {"claimName": "models"}}),
        ("emptyDir", {"emptyDir": {}}),
    ],
)
def test_only_a_host_path_is_written_as_root_and_nothing_has_capabilities(cache: str, volume: dict[str, Any]) -> None:
    pod = template(work(), Settings(worker_image="i", cache=cache))["spec"]
    assert {"name": "models", **volume} in pod["volumes"]
    fetch, server = pod["initContainers"][0]["securityContext"], pod["containers"][0]["securityContext"]
    for context in (fetch, server):
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
    root = cache.startswith("hostPath")
    assert fetch.get("runAsUser") == (0 if root else None)
    assert "runAsUser" not in server
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == render.WORKER_USER
    assert ("fsGroup" in pod["securityContext"]) is not root


@pytest.mark.parametrize("cache", ["", "hostPath:relative", "pvc:", "nfs:/x", "/var/lib"])
def test_a_cache_that_is_none_is_refused(cache: str) -> None:
    with pytest.raises(ShimError, match="hostPath:/PATH, pvc:CLAIM or emptyDir"):
        objects(work(), Settings(worker_image="i", cache=cache))


def test_a_site_without_a_worker_image_says_what_to_set() -> None:
    with pytest.raises(ShimError, match=r"serve serves a model.*kubernetes\.worker_image"):
        objects(work(), Settings())
    with pytest.raises(ShimError, match=r"runs a command.*kubernetes\.worker_image"):
        objects(work(model=None, command=("true",)), Settings())


def test_the_init_step_asks_for_no_more_than_the_server_and_for_no_accelerator() -> None:
    wanted = Resources(cpu_millis=250, memory_bytes=1 << 27, accelerators={"nvidia.com/gpu": 1})
    pod = template(work(resources=wanted))["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    fetch = pod["initContainers"][0]["resources"]
    assert fetch == {"requests": {"cpu": "250m", "memory": str(1 << 27)}, "limits": {"memory": str(1 << 27)}}
