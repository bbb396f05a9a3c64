"""A namespace of the tree on a Kubernetes member: what tests create there, what the member says of it, and that nothing is left."""

import json
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.support import API, WAIT_SECONDS, Site, Tree, application, until
from e2e.testbed import Member


class Place:
    """A namespace in the tree, and so in the member."""

    def __init__(self, root: Site, edge: Site, member: Member, cluster: str) -> None:
        self.root, self.edge, self.member, self.cluster = root, edge, member, cluster
        self.namespace = f"t-{secrets.token_hex(3)}"
        self.applications = f"{API}/namespaces/{self.namespace}/applications"
        self._since = member.audit_log.stat().st_size
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
        return self.rows(name).get(self.cluster, {})

    def rows(self, name: str) -> dict[str, dict[str, Any]]:
        """By the names of the clusters that run it."""
        return {row["name"]: row for row in self.status(name).get("clusters", [])}

    def until(self, name: str, what: str, check: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """As `support.until`; what the tree and the member's controller say of the Application is printed when it does not come."""
        try:
            until(f"{name} {what}", check, seconds)
        except BaseException:
            print(json.dumps(self.status(name), indent=1), self.edge.log(40), sep="\n")
            raise

    def until_ready(self, name: str, count: int = 1, seconds: float = WAIT_SECONDS) -> None:
        self.until(name, f"has {count} ready", lambda: self.status(name).get("ready") == count, seconds)

    def until_reason(self, name: str, reason: str, seconds: float = WAIT_SECONDS) -> str:
        """The message that comes with it."""
        last: dict[str, Any] = {}

        def says() -> bool:
            last.clear()
            last.update(self.row(name))
            return bool(last.get("reason") == reason)

        self.until(name, f"says {reason}", says, seconds)
        return str(last["message"])

    def objects(self, kinds: str = "deployments,services,pods") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.member.kubectl("get", kinds, "-n", self.namespace, "-o", "json"))["items"]
        return found

    def names(self, kind: str = "deployments") -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.objects(kind))

    def made(self, resource: str = "deployments") -> Counter[str]:
        """How often each object was made here, as the API server's own audit log says; what controllers name is counted under ""."""
        found: Counter[str] = Counter()
        with self.member.audit_log.open("rb") as log:
            log.seek(self._since)
            for line in log:
                if self.namespace.encode() not in line or not line.endswith(b"\n"):
                    continue
                entry = json.loads(line)
                of, code = entry.get("objectRef", {}), entry.get("responseStatus", {}).get("code")
                if (of.get("namespace"), of.get("resource"), of.get("subresource"), code) == (self.namespace, resource, None, 201):
                    found[of.get("name", "")] += 1
        return found

    def writes(self) -> str:
        """Who wrote what here, by the API server's own audit log; for a test that failed."""
        said = []
        with self.member.audit_log.open("rb") as log:
            log.seek(self._since)
            for line in log:
                if self.namespace.encode() in line and line.endswith(b"\n"):
                    entry = json.loads(line)
                    if entry["verb"] not in ("get", "list", "watch"):
                        code = entry.get("responseStatus", {}).get("code")
                        who = entry["user"]["username"]
                        said.append(f"{entry['stageTimestamp']} {entry['stage']} {who} {entry['verb']} {entry['requestURI']} {code}")
        return "\n".join(["", *said])

    def each_once(self, count: int, resource: str = "deployments") -> bool:
        """So many objects are there, and no more were ever made."""
        return len(self.names(resource)) == count == self.made(resource).total()

    def clear(self) -> None:
        self.root.kubectl("delete", "applications", "--all", "-n", self.namespace, "--timeout=50s")
        until("nothing of it is left in the member", lambda: not self.objects())


def join(tree: Tree, root: Site, name: str, member: Member, *options: str, kubeconfig: Path | None = None) -> Site:
    """A controller beside this host that speaks for a member's cluster, in the place of any from before; it answers when this returns."""
    member.disown()
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
