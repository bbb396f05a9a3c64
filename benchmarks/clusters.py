"""Kubernetes clusters for benchmarks, real API servers of `e2e.testbed`, and the sites that bring them into a tree."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from banyanctl.endpoint import read
from benchmarks.api import Pool
from benchmarks.harness import Site, Tree, token
from benchmarks.load import Env
from e2e.testbed import Member, Shape, Testbed

IMAGE = "registry.example/shop/web:1"
WORKLOADS = "/apis/apps/v1/namespaces/default/deployments"
PODS = "/api/v1/namespaces/default/pods"


class Metadata(Struct, frozen=True):
    name: str = ""
    uid: str = ""
    labels: dict[str, str] = {}


class Container(Struct, frozen=True):
    env: tuple[Env, ...] = ()


class PodSpec(Struct, frozen=True):
    containers: tuple[Container, ...] = ()


class Template(Struct, frozen=True):
    spec: PodSpec = PodSpec()


class WorkloadSpec(Struct, frozen=True):
    template: Template = Template()


class Workload(Struct, frozen=True):
    metadata: Metadata
    spec: WorkloadSpec = WorkloadSpec()


class Event(Struct, frozen=True):
    type: str
    object: Workload


EVENT = msgspec.json.Decoder(Event)


@contextlib.asynccontextmanager
async def clusters(**shapes: Shape) -> AsyncIterator[dict[str, Member]]:
    """Started one after the other, gone at the end. Raises Missing, which says what the machine lacks."""
    with Testbed() as testbed:
        for name, shape in shapes.items():
            await asyncio.to_thread(testbed.start, name.replace("_", "-"), shape)
        yield {name: testbed.members[name.replace("_", "-")] for name in shapes}


async def join(tree: Tree, parent: Site, member: Member, kubeconfig: Path | None = None, **settings: Any) -> Site:
    """A controller outside of the cluster, for it."""
    await asyncio.to_thread(member.disown)
    chosen = {"tunnel_listen": "", "shim": "kubernetes", "member_kubeconfig": str(kubeconfig or member.kubeconfig)} | settings
    return await tree.member(member.name, await token(parent), **chosen)


def pool(member: Member) -> Pool:
    """Asks the member's API server itself, as its administrator."""
    return Pool(read(member.kubeconfig))


def follow(lines: AsyncIterator[tuple[float, bytes]], seen: Callable[[str, str, float], None]) -> "asyncio.Task[None]":
    """``seen``(application, word, when) for every Deployment that is made or changed."""

    async def watching() -> None:
        async for at, line in lines:
            event = EVENT.decode(line)
            if event.type in ("ADDED", "MODIFIED"):
                containers = event.object.spec.template.spec.containers
                word = next((each.value for each in containers[0].env if each.name == "WORD"), "")
                seen(event.object.metadata.labels.get("app.kubernetes.io/name", ""), word, at)

    return asyncio.create_task(watching(), name="watch deployments")


def components(word: int = 0) -> list[dict[str, Any]]:
    """One container; ``word`` is what changes when it is changed."""
    return [{"name": "web", "container": {"image": IMAGE}, "env": [{"name": "WORD", "value": str(word)}]}]


def application(name: str, word: int = 0, **placement: Any) -> dict[str, Any]:
    return {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": components(word), "placement": placement},
    }


def writes(member: Member, resource: str = "deployments") -> int:
    """How often the shim has written objects of this kind, as the API server's own audit log says."""
    count = 0
    with member.audit_log.open("rb") as log:
        for line in log:
            entry = msgspec.json.decode(line)
            if entry.get("verb") in ("create", "update", "patch") and entry.get("objectRef", {}).get("resource") == resource:
                count += not entry.get("objectRef", {}).get("subresource") and entry["user"]["username"] == "admin"
    return count
