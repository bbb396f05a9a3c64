"""A namespace of the tree on a Kubernetes member: what tests create there, what the member says of it, and that nothing is left."""

import json
import secrets
from pathlib import Path
from typing import Any

from e2e.support import API, Site, Tree, application, until
from e2e.testbed import Member


class Place:
    """A namespace in the tree, and so in the member."""

    def __init__(self, root: Site, edge: Site, member: Member, cluster: str) -> None:
        self.root, self.edge, self.member, self.cluster = root, edge, member, cluster
        self.namespace = f"t-{secrets.token_hex(3)}"
        self.applications = f"{API}/namespaces/{self.namespace}/applications"
        root.kubectl("create", "namespace", self.namespace)

    def create(self, name: str, *components: dict[str, Any], **spec: Any) -> None:
        """Components that have no name are called main."""
        document = application(name, [{"name": "main", **each} for each in components], clusterName=self.cluster)
        document["metadata"]["namespace"] = self.namespace
        document["spec"] |= spec
        code, answer = self.root.ask("POST", self.applications, document)
        assert code == 201, answer

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.root.get(f"{self.applications}/{name}").get("status", {})
        return found

    def row(self, name: str) -> dict[str, Any]:
        """What the member itself says of it."""
        rows = self.status(name).get("clusters") or [{}]
        found: dict[str, Any] = rows[0]
        return found

    def until_ready(self, name: str, count: int = 1, seconds: float = 60.0) -> None:
        try:
            until(f"{name} has {count} ready", lambda: self.status(name).get("ready") == count, seconds)
        except BaseException:
            print(json.dumps(self.status(name), indent=1), self.edge.log(40), sep="\n")
            raise

    def until_reason(self, name: str, reason: str, seconds: float = 60.0) -> str:
        """The message that comes with it."""
        last: dict[str, Any] = {}

        def says() -> bool:
            last.clear()
            last.update(self.row(name))
            return bool(last.get("reason") == reason)

        try:
            until(f"{name} says {reason}", says, seconds)
        except BaseException:
            print(json.dumps(self.status(name), indent=1), self.edge.log(40), sep="\n")
            raise
        assert last["name"] == self.cluster, last
        return str(last["message"])

    def objects(self, kinds: str = "deployments,services,pods") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.member.kubectl("get", kinds, "-n", self.namespace, "-o", "json"))["items"]
        return found

    def clear(self) -> None:
        self.root.kubectl("delete", "applications", "--all", "-n", self.namespace, "--timeout=50s")
        until("nothing of it is left in the member", lambda: not self.objects())


def join(tree: Tree, root: Site, name: str, member: Member, *options: str, kubeconfig: Path | None = None) -> Site:
    """A controller beside this host that speaks for a member's cluster; it answers when this returns."""
    site = tree.site(name)
    given = ["--shim", "kubernetes", "--kubeconfig", str(kubeconfig or member.kubeconfig), *options]
    site.join(root.token(), "--tunnel-listen", "", *given)
    return site.wait()


def busybox(*command: str, **component: Any) -> dict[str, Any]:
    return {"container": {"image": "busybox:testbed", "command": list(command)}} | component


def manifests(*objects: dict[str, Any], **component: Any) -> dict[str, Any]:
    return {"manifests": list(objects)} | component


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
