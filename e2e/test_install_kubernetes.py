"""A controller inside the cluster that it makes a member: installed by one manifest and by Helm, upgraded, lost and removed.

The member is a whole one behind NAT. It reaches the root by dialling out, and nothing of it listens for the outside. What its controller
may do is compared with what the API server's audit log says that it did.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster_shim.kubernetes import names, rights
from e2e.at_site import load_worker
from e2e.support import API, ROOT, Site, Tree, application, growing, model_application, publish, until
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
CHART = ROOT / "helm" / "banyan-edge"
CLASS = "by-hand"  # volumes that this test makes: the testbed's node has no provisioner
FILES_ADDRESS = "10.96.77.77"  # the testbed has no name service
PORT = 8500
NAMESPACE = "shop"
LABEL = "banyan.dev/application-uid"


class Installed(NamedTuple):
    root: Site
    member: Member
    image: str

    def pod(self, namespace: str) -> dict[str, Any]:
        """The controller's own, once there is exactly one."""
        found = json.loads(self.member.kubectl("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/part-of=banyan", "-o", "json"))
        items = [each for each in found["items"] if "deletionTimestamp" not in each["metadata"]]
        assert len(items) == 1, [each["metadata"]["name"] for each in items]
        return dict(items[0])

    def is_serving(self, namespace: str, *, but: str = "") -> bool:
        pod = self.pod(namespace)
        return pod["metadata"]["name"] != but and all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))

    def uid(self, name: str) -> str:
        return str(self.root.get(f"{API}/clusters/{name}")["metadata"]["uid"])

    def run(self, name: str, cluster: str) -> None:
        """A small web server, with something to read, in the namespace."""
        component = {
            "name": "web",
            "container": {"image": "busybox:testbed", "command": ["sh", "-c", "exec httpd -f -p 8500 -h /var/lib/banyan/work/www"]},
            "expose": {"port": PORT},
            "envFrom": [{"secretRef": {"name": "words"}}],
            "files": [{"path": "www/index.html", "configMap": {"name": "page", "key": "index.html"}}],
        }
        document = application(name, [component], clusterName=cluster)
        document["metadata"]["namespace"] = NAMESPACE
        code, answer = self.root.ask("POST", f"{API}/namespaces/{NAMESPACE}/applications", document)
        assert code == 201, answer

    def status(self, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
        found: dict[str, Any] = self.root.get(f"{API}/namespaces/{namespace}/applications/{name}").get("status", {})
        return found

    def until_runs(self, name: str, namespace: str = NAMESPACE) -> None:
        until(f"{name} runs: {self.status(name, namespace)}", lambda: self.status(name, namespace).get("ready") == 1)

    def running(self, component: str) -> str:
        """uid of the pod of the application."""
        found = json.loads(self.member.kubectl("get", "pods", "-A", "-l", f"banyan.dev/component={component}", "-o", "json"))["items"]
        (uid,) = [each["metadata"]["uid"] for each in found if "deletionTimestamp" not in each["metadata"]]
        return str(uid)

    def forget(self) -> None:
        """Everything of a test, here and there."""
        for namespace in (NAMESPACE, "default"):
            self.root.kubectl("delete", "applications", "--all", "-n", namespace, "--wait=false")
        until("nothing of it is left", lambda: self.leftovers() == [])

    def leftovers(self) -> list[str]:
        return self.member.kubectl("get", "deployments,services,configmaps,secrets,pods", "-A", "-l", LABEL, "-o", "name").split()


def is_ready(root: Site, name: str) -> None:
    until(f"{name} is Ready at {root.name}", lambda: root.clusters().get(name, {}).get("phase") == "Ready")


@pytest.fixture(scope="module")
def installed(whole_member: Member, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A root outside of the member, which the member can dial."""
    image = load_worker(whole_member, edge_image)
    with growing(tmp_path_factory.mktemp("install")) as tree:
        root = rooted(tree, whole_member)
        root.kubectl("create", "namespace", NAMESPACE)
        root.kubectl("create", "-n", NAMESPACE, "configmap", "page", "--from-literal=index.html=open")
        root.kubectl("create", "-n", NAMESPACE, "secret", "generic", "words", "--from-literal=WORD=xyzzy")
        publish(root)
        yield Installed(root, whole_member, image)


def rooted(tree: Tree, member: Member) -> Site:
    root = tree.site("root")
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", f"{member.wan_host}:0", "--shim", "none")
    return root.run()


@pytest.fixture
def volume(installed: Installed) -> Iterator[str]:
    """For the controller's data."""
    name = f"controller-{os.urandom(3).hex()}"
    installed.member.give_volume(name, "10Gi", CLASS)
    yield name
    installed.member.take_volume(name)


def helm(member: Member, *arguments: str, values: dict[str, Any] | None = None) -> str:
    """The real helm, with nothing of this machine's user."""
    argv = [str(Path(sys.executable).with_name("helm")), "--kubeconfig", str(member.kubeconfig), *arguments]
    argv += ["-f", "-"] if values is not None else []
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=180, check=False, input=json.dumps(values or {}),
        env={"PATH": os.environ["PATH"], "HOME": str(member.folder)},
    )  # fmt: skip
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
    return done.stdout


# --- what the audit log says ---


class Asked(NamedTuple):
    verb: str
    group: str
    resource: str
    name: str
    code: int
    path: str
    person: str  # "" for what the shim asked in its own name


def asked_by(member: Member, namespace: str, account: str) -> list[Asked]:
    """What a service account asked of the API server, but for discovery, which everybody may."""
    user = f"system:serviceaccount:{namespace}:{account}"
    found = []
    for line in member.audit_log.read_text(encoding="utf-8").splitlines():
        if user not in line:
            continue
        entry = json.loads(line)
        reference = entry.get("objectRef")
        if entry["user"]["username"] != user or reference is None or entry["stage"] == "RequestReceived":
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource", ""))))
        person = (entry.get("impersonatedUser") or {}).get("username", "")
        code = (entry.get("responseStatus") or {}).get("code", 0)
        found.append(
            Asked(entry["verb"], reference.get("apiGroup", ""), resource, reference.get("name", ""), code, entry["requestURI"], person)
        )
    assert found, f"the audit log of {member.name} does not know {user}"
    return found


# What no request of this module shows, and why the shim needs it all the same.
UNSEEN = {
    ("create", "apps", "deployments"): "server-side apply: the log says patch, and a new object needs create besides",
    ("create", "", "services"): "the same",
    ("create", "", "configmaps"): "the same",
    ("create", "", "secrets"): "the same",
    ("create", "", "persistentvolumeclaims"): "the same",
    ("list", "metrics.k8s.io", "pods"): "asked when there is a metrics server; the testbed has none, and nodes are asked for first",
    ("get", "", "pods/portforward"): "a controller inside the cluster reaches pods itself, unless a network policy says no",
    ("impersonate", "", "users"): "not a request of its own: said by the header of another",
    ("impersonate", "", "groups"): "the same",
    ("impersonate", "authentication.k8s.io", "userextras/person"): "the same",
}


# What the test of the full profile shows to be used, and that of the namespaced one does not use again.
SELDOM = {
    *(("get", "", resource) for resource in ("services", "configmaps", "secrets", "persistentvolumeclaims")),
    *((verb, "", "persistentvolumeclaims") for verb in ("list", "watch", "patch", "delete")),
    ("get", "apps", "deployments"),
    ("list", "", "events"),
    ("get", "", "pods/log"),
}


def test_one_manifest_makes_the_cluster_a_member_and_its_rights_are_those_it_uses(installed: Installed, volume: str) -> None:
    root, member = installed.root, installed.member
    made = root.banyan(
        "join", root.token(), "--name", "edge-k8s", "--print-manifest", "--image", installed.image, "--storage-class", CLASS,
        "--labels", "tier=edge",
    ).stdout  # fmt: skip
    member.disown()
    try:
        member.kubectl("apply", "-f", "-", stdin=made)
        is_ready(root, "edge-k8s")
        assert root.clusters()["edge-k8s"]["labels"]["tier"] == "edge"
        installed.run("shop", "edge-k8s")
        installed.until_runs("shop")
        assert root.banyan("logs", "shop", "-n", NAMESPACE).returncode == 0
        address = member.kubectl(
            "get", "services", "-n", NAMESPACE, "-l", "banyan.dev/component=web", "-o", "jsonpath={.items[0].spec.clusterIP}"
        )
        fetch = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
        ask = [sys.executable, "-c", fetch, f"http://{address}:{PORT}/"]
        until("the site is answered", lambda: member.machine.run(ask).strip() == "open")
        assert root.banyan("invoke", "shop", "/", "-n", NAMESPACE).stdout.strip() == "open"
        assert_ours_alone(installed, "banyan-system")
        lose_the_controller(installed)
        # The same file once more: nothing to do, and no new join.
        before = installed.pod("banyan-system")["metadata"]["uid"]
        generation = ("get", "deployment", "banyan-edge", "-n", "banyan-system", "-o", "jsonpath={.metadata.generation}")
        deployed = member.kubectl(*generation)
        again = member.kubectl("apply", "-f", "-", stdin=made)
        # kubectl sends some kinds each time, whatever is there; whether that changed the Deployment says its generation.
        sent = ("secret/", "poddisruptionbudget.", "deployment.")
        rest = [line for line in again.splitlines() if not line.startswith(sent)]
        assert {line.rsplit(" ", 1)[1] for line in rest} == {"unchanged"}, again
        assert member.kubectl(*generation) == deployed
        assert installed.pod("banyan-system")["metadata"]["uid"] == before
        enter(installed)
        use_what_is_seldom_used(installed)
        until(
            "usage was asked for", lambda: any(each.resource == "nodes/proxy" for each in asked_by(member, "banyan-system", "banyan-edge"))
        )
        installed.forget()
        until("the namespace that was made is removed", lambda: "NotFound" in member.kubectl("get", "namespace", NAMESPACE, check=False))
        compare_with_the_audit_log(member)
    finally:
        member.kubectl("delete", "-f", "-", "--wait=false", stdin=made, check=False)
        until("it is gone", lambda: "NotFound" in member.kubectl("get", "namespace", "banyan-system", check=False))


def assert_ours_alone(installed: Installed, namespace: str) -> None:
    """The pod is nobody, in a namespace where only such may run; its files are the group's alone."""
    until("its probe finds it ready", lambda: [each["ready"] for each in installed.pod(namespace)["status"]["containerStatuses"]] == [True])
    pod = installed.pod(namespace)
    assert pod["spec"]["securityContext"]["runAsUser"] == 65532
    said = installed.member.kubectl("exec", "-n", namespace, pod["metadata"]["name"], "-c", "controller", "--", "banyan", "tree")
    assert "edge-k8s" in said
    modes = "import os; print(oct(os.stat('/var/lib/banyan/identity').st_mode & 0o77), os.getuid())"
    run = ["exec", "-n", namespace, pod["metadata"]["name"], "-c", "controller", "--", "python3", "-c", modes]
    assert installed.member.kubectl(*run).split() == ["0o0", "65532"]


def lose_the_controller(installed: Installed) -> None:
    """Its pod is deleted, with its token: another goes on as the same member, and what it runs is not touched."""
    member, before = installed.member, installed.running("web")
    uid = installed.uid("edge-k8s")
    pod = installed.pod("banyan-system")["metadata"]["name"]
    member.kubectl("delete", "secret", "banyan-edge-join", "-n", "banyan-system")
    member.kubectl("delete", "pod", pod, "-n", "banyan-system", "--now")
    until("another is ready", lambda: installed.is_serving("banyan-system", but=pod))
    is_ready(installed.root, "edge-k8s")
    assert installed.uid("edge-k8s") == uid
    assert "lives in" in member.kubectl("logs", "deployment/banyan-edge", "-n", "banyan-system", "-c", "join")
    assert installed.running("web") == before


def use_what_is_seldom_used(installed: Installed) -> None:
    """Claims that an Application brings, an instance that does not become ready, and objects that somebody takes for their own."""
    member = installed.member
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}
    brought = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "brought"}, "spec": claim}
    components: list[dict[str, Any]] = [
        {"name": "claim", "manifests": [brought]},
        {"name": "never", "container": {"image": "registry.invalid/nothing:1"}},
    ]
    document = application("seldom", components, clusterName="edge-k8s")
    document["metadata"]["namespace"] = NAMESPACE
    code, answer = installed.root.ask("POST", f"{API}/namespaces/{NAMESPACE}/applications", document)
    assert code == 201, answer
    until("it says why it is not ready", lambda: "registry.invalid" in json.dumps(installed.status("seldom")))

    def ours() -> list[str]:
        kinds = "deployments,services,configmaps,secrets,persistentvolumeclaims"
        labelled = f"{LABEL},{names.PART_OF},{names.COMPONENT_LABEL}!=mine"
        return member.kubectl("get", kinds, "-n", NAMESPACE, "-l", labelled, "-o", "name").split()

    before = ours()
    assert {name.partition("/")[0].partition(".")[0] for name in before} == {
        "deployment", "service", "configmap", "secret", "persistentvolumeclaim"
    }  # fmt: skip
    for name in before:
        member.kubectl("label", "-n", NAMESPACE, name, "--overwrite", f"{names.PART_OF}-", f"{names.COMPONENT_LABEL}=mine")
    until("they are ours again", lambda: ours() == before)


def enter(installed: Installed) -> None:
    """kubectl through the tree: as the user banyan, in the group of the tree's administrators."""
    kubeconfig = installed.root.folder.parent / "edge-k8s.kubeconfig"
    installed.root.banyan("kubeconfig", "edge-k8s", "--write", str(kubeconfig))
    said = installed.root.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig)
    person = json.loads(said)["status"]["userInfo"]
    assert person["username"] == rights.PERSON
    assert "banyan:admin" in person["groups"]
    assert "system:masters" not in person["groups"]
    assert installed.member.name in installed.root.kubectl("get", "nodes", "-o", "name", kubeconfig=kubeconfig)


def compare_with_the_audit_log(member: Member) -> None:
    asked = asked_by(member, "banyan-system", "banyan-edge")
    own = [each for each in asked if not each.person]
    granted = tuple(rights.rules("full"))
    refused = [each for each in asked if each.code == 403]
    assert not refused, refused[:5]
    beyond = [each for each in own if not rights.allows(granted, each.verb, each.group, each.resource, each.name)]
    assert not beyond, beyond[:5]
    assert {each.person for each in asked} == {"", rights.PERSON}
    assert unused(granted, own) == set(UNSEEN)
    assert any(each.verb == "list" and each.resource == "limitranges" for each in own)  # what TIDY is for


def unused(granted: Sequence[rights.Rule], asked: Sequence[Asked]) -> set[tuple[str, str, str]]:
    """Rights of which nobody made use, but for the one that is for whatever a namespace may hold."""
    used = {(each.verb, each.group, each.resource) for each in asked}
    rules = [rule for rule in granted if rule not in rights.TIDY]
    return {(verb, rule.group, resource) for rule in rules for resource in rule.resources for verb in rule.verbs} - used


# --- Helm ---


def values(installed: Installed, token: str, **more: Any) -> dict[str, Any]:
    return {
        "cluster": {"name": "edge-helm", "labels": {"tier": "edge"}},
        "join": {"token": token},
        "image": {"repository": installed.image.partition(":")[0], "tag": installed.image.partition(":")[2]},
        "persistence": {"storageClass": CLASS},
        "modelFiles": {"clusterIP": FILES_ADDRESS},
        "rights": {"profile": "namespaced", "namespaces": [NAMESPACE, "default"]},
        **more,
    }


def test_helm_installs_upgrades_and_removes_it_and_what_runs_runs_on(installed: Installed, volume: str) -> None:
    root, member = installed.root, installed.member
    given = values(installed, root.token())
    until("the namespace can be made", lambda: "Terminating" not in member.kubectl("get", "namespace", NAMESPACE, check=False))
    member.disown()
    member.kubectl("create", "namespace", NAMESPACE)
    try:
        helm(member, "install", "edge", str(CHART), "-n", "site", "--create-namespace", "--wait", "--timeout", "170s", values=given)
        is_ready(root, "edge-helm")
        uid = installed.uid("edge-helm")
        installed.run("shop", "edge-helm")
        installed.until_runs("shop")
        code, answer = root.ask("POST", f"{API}/namespaces/default/applications", model_application(port=PORT + 1, clusterName="edge-helm"))
        assert code == 201, answer
        installed.until_runs("emotion", "default")  # its model came through the Service of the controller
        pods = installed.running("web"), installed.running("serve")
        upgrade(installed, given)
        helm(member, "uninstall", "edge", "-n", "site", "--wait")
        until("the root knows that it does not know", lambda: root.clusters()["edge-helm"]["phase"] != "Ready")
        kinds = "deployments,services,configmaps,secrets,networkpolicies,poddisruptionbudgets,serviceaccounts,persistentvolumeclaims"
        left = member.kubectl("get", kinds, "-n", "site", "-l", "app.kubernetes.io/part-of=banyan", "-o", "name").split()
        assert left == ["persistentvolumeclaim/edge-banyan-edge-data"]
        roles = "clusterroles,clusterrolebindings,rolebindings"
        assert member.kubectl("get", roles, "-A", "-l", "app.kubernetes.io/part-of=banyan", "-o", "name") == ""
        assert (installed.running("web"), installed.running("serve")) == pods
        # Back from the volume that stayed: the same member, without a token that works.
        (volume_claim,) = left
        again = given | {"persistence": {"existingClaim": volume_claim.partition("/")[2]}}
        helm(member, "install", "edge", str(CHART), "-n", "site", "--wait", "--timeout", "170s", values=again)
        is_ready(root, "edge-helm")
        assert installed.uid("edge-helm") == uid
        installed.until_runs("shop")
        assert (installed.running("web"), installed.running("serve")) == pods
        refused_elsewhere(installed)
        installed.forget()
        stays_within_its_namespaces(member)
    finally:
        helm(member, "uninstall", "edge", "-n", "site", "--ignore-not-found")
        member.kubectl("delete", "namespace", "site", NAMESPACE, "--ignore-not-found", "--wait=false")
        until("it is gone", lambda: "NotFound" in member.kubectl("get", "namespace", "site", check=False))


def upgrade(installed: Installed, given: dict[str, Any]) -> None:
    """Other settings reach the controller, by another pod; the member stays who it is, and what it runs is not touched."""
    root, member = installed.root, installed.member
    before = installed.pod("site")["metadata"]["uid"], installed.uid("edge-helm"), installed.running("web")
    changed = given | {"cluster": {"name": "edge-helm", "labels": {"zone": "north"}}}
    helm(member, "upgrade", "edge", str(CHART), "-n", "site", "--wait", "--timeout", "170s", values=changed)
    until("the root sees the other labels", lambda: root.clusters()["edge-helm"].get("labels", {}).get("zone") == "north")
    is_ready(root, "edge-helm")
    assert installed.pod("site")["metadata"]["uid"] != before[0]
    assert (installed.uid("edge-helm"), installed.running("web")) == before[1:]


def refused_elsewhere(installed: Installed) -> None:
    """An Application of a namespace that the site did not name does not run, and says why."""
    root, member = installed.root, installed.member
    root.kubectl("create", "namespace", "elsewhere")
    document = application("shop", [{"name": "web", "container": {"image": "busybox:testbed"}}], clusterName="edge-helm")
    document["metadata"]["namespace"] = "elsewhere"
    code, answer = root.ask("POST", f"{API}/namespaces/elsewhere/applications", document)
    assert code == 201, answer

    def said() -> bool:
        return "forbidden" in json.dumps(installed.status("shop", "elsewhere")).lower()

    until("it says that the site does not allow it", said)
    assert "NotFound" in member.kubectl("get", "namespace", "elsewhere", check=False)
    root.kubectl("delete", "application", "shop", "-n", "elsewhere", "--wait=false")
    until("it is forgotten", partial(_absent, installed.root, f"{API}/namespaces/elsewhere/applications/shop"))


def _absent(root: Site, path: str) -> bool:
    return root.ask("GET", path)[0] == 404


def stays_within_its_namespaces(member: Member) -> None:
    """What it asked beyond its rights was refused, and was nothing but looking and the namespace of an Application."""
    asked = [each for each in asked_by(member, "site", "edge-banyan-edge") if not each.person]
    granted = tuple(rights.rules("namespaced"))
    beyond = {
        (each.verb, each.group, each.resource)
        for each in asked
        if not rights.allows(granted, each.verb, each.group, each.resource, each.name)
    }
    assert beyond <= {("create", "", "namespaces"), ("get", "", "nodes/proxy")}, beyond
    # One list of rules makes both profiles: what `full` shows to be used is not shown again.
    assert unused(granted, asked) <= set(UNSEEN) | set(SELDOM), unused(granted, asked)
    written = [each for each in asked if each.verb in ("create", "patch", "delete") and each.code in (200, 201)]
    places = {each.path.split("/namespaces/")[1].split("/")[0] for each in written if "/namespaces/" in each.path}
    assert places <= {NAMESPACE, "default", rights.OWNER_NAMESPACE}
