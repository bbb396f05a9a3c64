"""Groups, on every way in and on requests that last: real controllers, real kubectl's credentials, a tree of three levels."""

import json
import threading
from collections.abc import Iterator

import pytest
from msgspec import structs

from banyanctl.client import Client
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from cluster_controller.errors import BanyanError
from e2e.support import API, APPS, Site, Tree, program, until
from e2e.test_workloads import create

EDGE = f"{API}/clusters/edge-1/banyan"
PODS = "/api/v1/namespaces/default/pods"


class Person:
    """Somebody with a credential of the root, who asks it or a controller below."""

    def __init__(self, root: Site, name: str, *grant: str) -> None:
        self.name, self.file = name, root.folder.parent / f"{name}.kubeconfig"
        root.banyan("user", "create", name, *grant, "--kubeconfig-out", str(self.file))

    def client(self, site: Site | None = None) -> Client:
        """Asks the root, or ``site`` at its own address: a leaf's certificate is its own."""
        endpoint = read(self.file)
        if site is not None:
            there = read(site.folder / ADMIN_KUBECONFIG)
            endpoint = structs.replace(endpoint, server=there.server, ca=there.ca)
        return Client(endpoint, 20.0)

    def code(self, method: str, path: str, body: object = None) -> int:
        with self.client() as client:
            data = None if body is None else json.dumps(body).encode()
            return client.request(method, path, body=data, headers={"Content-Type": "application/json"}).status


class Watch(threading.Thread):
    """A watch that goes on until somebody ends it."""

    def __init__(self, client: Client, path: str) -> None:
        super().__init__(daemon=True)
        self.client, self.path, self.lines, self.ended = client, path, 0, ""
        self.start()

    def run(self) -> None:
        try:
            for _ in self.client.lines(self.path, {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}):
                self.lines += 1
        except BanyanError as error:
            self.ended = str(error)


@pytest.fixture
def root(grove: Tree) -> Iterator[Site]:
    """The root of a tree where `echo` runs on edge-1."""
    root = grove.sites["root"]
    create(root, program("echo", expose={"port": 18207}))
    yield root
    for user in root.get(f"{API}/users")["items"]:
        root.ask("DELETE", f"{API}/users/{user['metadata']['name']}")


def test_a_group_counts_on_every_way_in(root: Site, grove: Tree) -> None:
    viewer, editor = Person(root, "vera", "--group", "view", "-n", "default"), Person(root, "ed", "--group", "edit", "-n", "default")
    pod = until("the pod is listed", lambda: grove.sites["edge-1"].get(PODS)["items"])[0]["metadata"]["name"]
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}, "data": {}}
    maps, proxy = "/api/v1/namespaces/default/configmaps", f"{APPS}/echo/proxy/"
    other = "/api/v1/namespaces/kube-system/configmaps"
    for path, body, codes in (
        (APPS, None, (200, 200)),
        (maps, config, (403, 201)),
        (other, config, (403, 403)),
        ("/api/v1/namespaces/default/secrets", None, (403, 200)),
        (f"{API}/users", None, (403, 403)),
        (f"{other}?watch=1", None, (403, 403)),
        (f"{maps}?watch=1&timeoutSeconds=1", None, (200, 200)),
        ("/api/v1/configmaps?watch=1", None, (403, 403)),
        (proxy, None, (200, 200)),
        (proxy, {}, (403, 200)),
        # and the same through the tree, as the same person: the edge's own API judges again
        (f"{EDGE}{PODS}", None, (200, 200)),
        (f"{EDGE}{PODS}/{pod}/log?tailLines=1", None, (200, 200)),
        (f"{EDGE}{PODS.replace('default', 'kube-system')}", None, (403, 403)),
        (f"{EDGE}{maps}", config, (403, 201)),
        (f"{EDGE}/api/v1/namespaces/default/secrets", None, (403, 200)),
        (f"{EDGE}{API}/users", None, (403, 403)),
    ):  # fmt: skip
        method = "GET" if body is None else "POST"
        assert (viewer.code(method, path, body), editor.code(method, path, body)) == codes, (method, path)


def test_a_revoked_users_watches_end_here_and_below(root: Site, grove: Tree) -> None:
    """Those that go through the root, and one at the edge itself, which knows the root's users by their certificates."""
    person = Person(root, "rita", "--group", "view")
    watches = [Watch(person.client(), APPS), Watch(person.client(), f"{EDGE}{PODS}"), Watch(person.client(grove.sites["edge-1"]), PODS)]
    until("all watch", lambda: all(watch.lines for watch in watches) or [watch.ended for watch in watches if watch.ended])
    assert not [watch.ended for watch in watches if watch.ended]
    other = Watch(Person(root, "otto", "--group", "view").client(), APPS)
    until("he watches too", lambda: other.lines)
    root.banyan("user", "revoke", "rita")
    for watch in watches:
        watch.join(10)
        assert not watch.is_alive(), watch.path
    assert other.is_alive()
    assert person.code("GET", APPS) == 401
    root.banyan("user", "revoke", "otto")
    other.join(10)
    assert not other.is_alive()
