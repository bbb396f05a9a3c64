"""An unmodified kubectl against the API on its front: every verb that people use."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from cluster_controller.resources.tables import Heard
from tests.openapi.support import Server, application, fronted, kubeconfig, run
from tools import needs

pytestmark = pytest.mark.needs("kubectl")
APP = msgspec.json.encode(application())


class Kubectl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    async def start(self, *arguments: str, token: str = "admin-token") -> asyncio.subprocess.Process:
        environment = {
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kubeconfig(self.folder, token)),
            "KUBE_EDITOR": EDITOR,
        }
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            needs.kubectl(), *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=self.folder
        )

    async def __call__(self, *arguments: str, stdin: bytes = b"", code: int = 0, token: str = "admin-token") -> str:
        """Standard output, or standard error when it is expected to fail."""
        process = await self.start(*arguments, token=token)
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == code, f"kubectl {' '.join(arguments)}: {process.returncode}\n{out.decode()}\n{err.decode()}"
        assert not (code == 0 and b"rror" in err), err.decode()
        return (err if code else out).decode()


EDITOR = "sed -i s/replicas:.*/replicas:\\ 9/"


def with_kubectl(folder: Path, body: Callable[[Server, Kubectl], Awaitable[None]]) -> None:
    async def main(server: Server) -> None:
        async with fronted(server, folder):
            await body(server, Kubectl(folder))

    run(folder, main)


def test_apply_get_diff_edit_scale_patch_wait_delete(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        assert "created" in await kubectl("apply", "-f", "-", stdin=APP)
        assert "unchanged" in await kubectl("apply", "-f", "-", stdin=APP)
        more = APP.replace(b'"replicas":2', b'"replicas":3')
        assert "+    replicas: 3" in (await diff(kubectl, more))
        assert "configured" in await kubectl("apply", "-f", "-", stdin=more)
        assert "created (server dry run)" in await kubectl("apply", "--dry-run=server", "-f", "-", stdin=APP.replace(b"emotion", b"other"))
        assert (await kubectl("get", "apps")).splitlines()[1].split()[:2] == ["emotion", "0/3"]
        assert "MODELS" in await kubectl("get", "applications", "-o", "wide")
        assert "replicas: 3" in await kubectl("get", "app", "emotion", "-o", "yaml")
        assert "edited" in await kubectl("edit", "app", "emotion")
        assert await replicas(kubectl) == "9"
        await kubectl("scale", "app/emotion", "--replicas=4")
        assert await replicas(kubectl) == "4"
        await kubectl("patch", "app", "emotion", "--type=json", "-p", '[{"op":"replace","path":"/spec/components/0/replicas","value":5}]')
        assert await replicas(kubectl) == "5"
        await kubectl("patch", "app", "emotion", "--type=merge", "-p", '{"metadata":{"labels":{"a":"b"}}}')
        await kubectl("label", "app", "emotion", "tier=edge")
        await kubectl("annotate", "app", "emotion", "note=x")
        assert "emotion" in await kubectl("get", "apps", "-l", "tier in (edge),a=b", "-o", "name")
        assert await kubectl("get", "apps", "-A", "-l", "tier=hub", "-o", "name") == ""
        assert "emotion" in await kubectl("get", "apps", "-A", "--field-selector", "metadata.name=emotion")
        await kubectl("wait", "app/emotion", "--for=jsonpath={.spec.components[0].replicas}=5", "--timeout=30s")
        described = await kubectl("describe", "app", "emotion")
        assert "Replicas:  5" in described and "tier=edge" in described
        refused = await kubectl("apply", "--server-side", "-f", "-", stdin=APP, code=1)
        assert "server-side apply is not served yet" in refused
        assert "deleted" in await kubectl("delete", "app", "emotion")
        assert "NotFound" in await kubectl("get", "app", "emotion", code=1)

    async def replicas(kubectl: Kubectl) -> str:
        return await kubectl("get", "app", "emotion", "-o", "jsonpath={.spec.components[0].replicas}")

    async def diff(kubectl: Kubectl, document: bytes) -> str:
        process = await kubectl.start("diff", "-f", "-")
        out, err = await process.communicate(document)
        assert process.returncode == 1, err.decode()
        return out.decode()

    with_kubectl(tmp_path, body)


def test_mistakes_are_explained(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        wrong = await kubectl("apply", "-f", "-", stdin=APP.replace(b"replicas", b"replcas"), code=1)
        assert "spec.components[0].replcas: unknown field; did you mean replicas?" in wrong
        assert "not served yet" in await kubectl(
            "apply",
            "-f",
            "-",
            stdin=b'{"apiVersion":"banyan.dev/v1alpha1","kind":"Model","metadata":{"name":"m"},"spec":{"versions":[{"name":"1","files":[],"variants":[]}]}}',
            code=1,
        )
        await kubectl("apply", "-f", "-", stdin=APP)
        two = msgspec.json.decode(APP)
        two["metadata"]["name"] = "two"
        two["spec"]["components"].append({"name": "b", "command": ["x"]})
        await kubectl("create", "-f", "-", stdin=msgspec.json.encode(two))
        assert "scale needs exactly one" in await kubectl("scale", "app/two", "--replicas=2", code=1)
        assert "AlreadyExists" in await kubectl("create", "-f", "-", stdin=APP, code=1)
        assert "strategic merge is for core kinds" in await kubectl("patch", "app", "two", "-p", "{}", code=1)
        assert "role edit" in await kubectl("create", "configmap", "x", token="view-token", code=1)
        assert "role edit" in await kubectl("get", "secrets", token="view-token", code=1)

    with_kubectl(tmp_path, body)


def test_core_kinds(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        assert "created" in await kubectl("create", "namespace", "team")
        assert "created" in await kubectl("create", "configmap", "m", "-n", "team", "--from-literal=x=y")
        assert "created" in await kubectl("create", "secret", "generic", "s", "-n", "team", "--from-literal=p=q")
        assert await kubectl("get", "secret", "s", "-n", "team", "-o", "jsonpath={.data.p}") == "cQ=="
        await kubectl("patch", "configmap", "m", "-n", "team", "-p", '{"data":{"z":"1","x":null}}')
        assert await kubectl("get", "cm", "m", "-n", "team", "-o", "jsonpath={.data}") == '{"z":"1"}'
        assert "team" in await kubectl("get", "cm,secret", "-A")
        event = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "m.1", "namespace": "team"}, "reason": "Changed",
            "message": "it changed", "type": "Normal",
            "involvedObject": {"apiVersion": "v1", "kind": "ConfigMap", "name": "m", "namespace": "team"},
            "firstTimestamp": "2026-11-21T11:00:00Z", "lastTimestamp": "2026-11-21T11:00:00Z", "source": {"component": "test"}, "count": 1,
        }  # fmt: skip
        await kubectl("create", "-f", "-", stdin=msgspec.json.encode(event))
        assert "it changed" in await kubectl("events", "-n", "team")
        assert "it changed" in await kubectl("get", "events", "-n", "team")
        assert "it changed" in await kubectl("events", "-n", "team", "--for", "configmap/m")
        assert "deleted" in await kubectl("delete", "namespace", "team")
        assert "team" not in await kubectl("get", "ns")

    with_kubectl(tmp_path, body)


def test_what_controllers_show(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        await server.put("own", "Cluster", "edge-1", spec={}, status={"uid": "u1", "parent": "region-a", "phase": "Unknown"})
        server.services.heards["u1"] = Heard(83.4, False, "region-a → edge-1")
        cells = (await kubectl("get", "clusters")).splitlines()[1].split()
        assert cells[:7] == ["edge-1", "region-a", "Unknown", "83s", "region-a", "→", "edge-1"]
        labels = {"banyan.dev/application": "emotion", "banyan.dev/application-uid": "u", "banyan.dev/component": "serve"}
        container = {
            "name": "serve",
            "ready": True,
            "restartCount": 0,
            "image": "",
            "imageID": "",
            "state": {"running": {"startedAt": "2026-11-21T11:00:00Z"}},
        }
        await server.put(
            "observed", "Pod", "p1", "default", metadata={"labels": labels}, spec={"containers": [{"name": "serve"}], "nodeName": "n1"},
            status={"phase": "Running", "containerStatuses": [container]},
        )  # fmt: skip
        await server.put(
            "observed",
            "Node",
            "n1",
            status={"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "2", "memory": "1Gi"}},
        )
        assert "1/1" in await kubectl("get", "pods") and "Ready" in await kubectl("get", "nodes")
        assert "Restart Count:  0" in await kubectl("describe", "pod", "p1")
        assert "Ready" in await kubectl("describe", "node", "n1")
        server.services.logs["p1"] = [b"one\n", b"two\n"]
        assert await kubectl("logs", "p1") == "one\ntwo\n"
        process = await kubectl.start("logs", "-f", "p1")
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert [await process.stdout.readline(), await process.stdout.readline()] == [b"one\n", b"two\n"]
            process.terminate()
            await process.communicate()
            await server.services.streams[-1].aborted.wait()

    with_kubectl(tmp_path, body)


def test_watching(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        await kubectl("apply", "-f", "-", stdin=APP)
        process = await kubectl.start("get", "apps", "-w")
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert (await process.stdout.readline()).startswith(b"NAME")
            assert (await process.stdout.readline()).split()[:2] == [b"emotion", b"0/2"]
            await kubectl("scale", "app/emotion", "--replicas=6")
            assert (await process.stdout.readline()).split()[:2] == [b"emotion", b"0/6"]
            process.terminate()
            await process.communicate()

    with_kubectl(tmp_path, body)


def test_asking_about_the_server(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        assert "v1.32.0+banyan-0.1.0" in await kubectl("version")
        assert "is running at" in await kubectl("cluster-info")
        resources = await kubectl("api-resources")
        for name in (
            "applications",
            "clusters",
            "models",
            "jointokens",
            "users",
            "subtreeapplications",
            "works",
            "pods",
            "nodes",
            "secrets",
        ):
            assert name in resources
        assert "banyan.dev/v1alpha1" in await kubectl("api-versions")
        explained = await kubectl("explain", "application.spec.components.model")
        assert "GROUP:      banyan.dev" in explained and "version" in explained and "the last version listed" in explained
        assert "replicas" in await kubectl("explain", "apps", "--recursive")
        who = await kubectl("auth", "whoami")
        assert "ada" in who and "banyan:admin" in who
        assert await kubectl("auth", "can-i", "create", "applications") == "yes\n"
        assert "no" in await run_can_i(kubectl)
        assert "applications.banyan.dev" in await kubectl("auth", "can-i", "--list", token="view-token")

    async def run_can_i(kubectl: Kubectl) -> str:
        process = await kubectl.start("auth", "can-i", "create", "applications", token="view-token")
        out, _ = await process.communicate()
        assert process.returncode == 1
        return out.decode()

    with_kubectl(tmp_path, body)


def test_long_lists_come_in_chunks(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        from cluster_controller.store import Key

        document = b'{"metadata":{"name":"m"},"data":{"x":"y"}}'
        await server.store.commit(
            lambda tx: [tx.put(Key("own", "ConfigMap", "default", f"m{number:04}"), document, uid=f"u{number}") for number in range(1200)]
        )
        out = await kubectl("get", "configmaps", "--chunk-size=500", "-v=6")
        assert len(out.splitlines()) == 1201

    with_kubectl(tmp_path, body)
