"""The way to a member's API server, on a real one: credentials that change under it, a server that restarts, forgets or has no time.

What is asked for goes on as long as anybody could have answered it; what is watched is never missed and never doubled.
"""

import asyncio
import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import narrow
from cluster_shim.kubernetes.api import Access, Api, ApiError
from cluster_shim.kubernetes.informer import Informer
from e2e.testbed import Member, Shape, Testbed
from e2e.testbed.fixtures import begin

pytestmark = pytest.mark.needs("kubectl")

WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
SECONDS = 60.0


class Named(msgspec.Struct):
    """Any object, as who it is."""

    metadata: narrow.Meta


async def until(what: str, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < deadline, f"after {SECONDS:g} s it is still not so that {what}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def asking(kubeconfig: Path, context: str = "") -> AsyncIterator[Api]:
    api = await Api.open(Access(str(kubeconfig), context))
    try:
        yield api
    finally:
        await api.close()


async def who(api: Api) -> str:
    review = msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    return str(msgspec.json.decode(await api.request("POST", WHO, body=review))["status"]["userInfo"]["username"])


def account(member: Member, name: str) -> str:
    """A service account that may do everything; a token of it."""
    member.kubectl("create", "serviceaccount", name)
    member.kubectl("create", "clusterrolebinding", name, "--clusterrole=cluster-admin", f"--serviceaccount=default:{name}")
    return member.kubectl("create", "token", name).strip()


def forget(member: Member, name: str) -> None:
    """Its tokens are worth nothing from now on."""
    member.kubectl("delete", "serviceaccount", name)
    member.kubectl("delete", "clusterrolebinding", name, "--ignore-not-found")


def config(member: Member, path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    """The administrator's kubeconfig with another user."""
    document = json.loads(member.kubeconfig.read_text())
    document["users"][0]["user"] = user
    document["clusters"][0]["cluster"] |= cluster
    path.write_text(json.dumps(document))
    return path


def test_a_token_that_rotates_on_disk_and_one_that_a_plugin_makes(control_plane: Member, tmp_path: Path) -> None:
    """Each credential is used until the server refuses it, and then what is there by now."""
    secret = tmp_path / "token"
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f"#!{sys.executable}\nimport json, pathlib\n"
        'print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
        f' "status": {{"token": pathlib.Path({str(secret)!r}).read_text()}}}}))\n'
    )
    plugin.chmod(0o700)
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    users: list[dict[str, Any]] = [{"tokenFile": str(secret)}, {"exec": command}]
    for number, user in enumerate(users):
        first, second = f"first-{number}", f"second-{number}"
        secret.write_text(account(control_plane, first))
        kubeconfig = config(control_plane, tmp_path / f"{number}.kubeconfig", user)

        async def play(kubeconfig: Path = kubeconfig, first: str = first, second: str = second) -> None:
            async with asking(kubeconfig) as api:
                assert await who(api) == f"system:serviceaccount:default:{first}"
                assert dict(await api.credential_headers())[b"authorization"].startswith(b"Bearer ")
                await asyncio.to_thread(forget, control_plane, first)
                secret.write_text(await asyncio.to_thread(account, control_plane, second))
                for _ in range(100):  # the server remembers a token for ten seconds after it was good
                    if await who(api) == f"system:serviceaccount:default:{second}":
                        break
                    await asyncio.sleep(0.2)
                assert await who(api) == f"system:serviceaccount:default:{second}"
                await asyncio.to_thread(forget, control_plane, second)

        asyncio.run(play())


def test_a_client_certificate_that_is_replaced_on_disk(control_plane: Member) -> None:
    """The old one ends while the connection to the server stands; with none in its place the error says what to do."""
    short = control_plane.user("robot", ["system:masters"], valid=timedelta(seconds=3))

    async def play() -> None:
        async with asking(short) as api:
            assert await who(api) == "robot"
            await asyncio.sleep(3.5)
            with pytest.raises(ApiError) as refused:
                await who(api)
            assert refused.value.status == 401 or "certificate" in str(refused.value)
            await asyncio.sleep(2.1)  # a credential is read again at most every two seconds
            await asyncio.to_thread(control_plane.user, "robot", ["system:masters"])
            assert await who(api) == "robot"

    asyncio.run(play())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "Invalid kube-config file|name a kubeconfig that kubectl accepts"),
        (lambda path: path.write_text("{"), "cannot be read as a kubeconfig|kube-config"),
        (lambda path: path.write_text("[]"), "kubeconfig"),
    ],
)
def test_a_kubeconfig_that_is_none(control_plane: Member, tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(control_plane.kubeconfig.read_bytes())
    damage(path)

    async def play() -> None:
        async with asking(path):
            pass

    with pytest.raises(ShimError, match=says) as refused:
        asyncio.run(play())
    assert str(path) in str(refused.value)


def test_a_context_that_is_not_there_and_a_server_that_is_none(control_plane: Member, tmp_path: Path) -> None:
    async def play(kubeconfig: Path, context: str = "") -> None:
        async with asking(kubeconfig, context):
            pass

    with pytest.raises(ShimError, match="nowhere"):
        asyncio.run(play(control_plane.kubeconfig, "nowhere"))
    away = config(control_plane, tmp_path / "away", {"token": "x"}, server="https://127.0.0.1:9")
    with pytest.raises(ShimError, match=r"https://127.0.0.1:9.*does not answer.*refused"):
        asyncio.run(play(away))
    other = config(control_plane, tmp_path / "other", {"token": "x"})
    with pytest.raises(ApiError) as refused:
        asyncio.run(play(other))
    assert refused.value.status == 401


class Cable:
    """Between a client and the API server; may be pulled."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pull(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._member.api_url.removeprefix("https://").split(":")
        self._open.add(writer)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        except OSError:  # the API server is away
            writer.close()
            self._open.discard(writer)
            return
        self._open.add(inner_writer)
        try:
            await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()
                self._open.discard(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
        self._open.discard(writer)


class Seen:
    """Every change that an informer tells, folded: what somebody who listens would know."""

    def __init__(self, informer: Informer[Named]) -> None:
        self.versions: dict[str, list[str]] = {}
        self.now: dict[str, str] = {}
        informer.subscribe(self._take)

    def _take(self, changes: list[Any]) -> None:
        for change in changes:
            meta = change.object.metadata
            if change.kind == "put":
                self.versions.setdefault(meta.name, []).append(meta.resource_version)
                self.now[meta.name] = meta.resource_version
            else:
                del self.now[meta.name]


def put(member: Member, name: str, value: str = "1") -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value}}
    code, answer = member.request("POST", CONFIG_MAPS, body)
    if code == 409:
        code, answer = member.request("PUT", f"{CONFIG_MAPS}/{name}", body)
    assert code in (200, 201), answer


def there(member: Member) -> dict[str, str]:
    items = member.request("GET", CONFIG_MAPS)[1]["items"]
    return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in items}


def lists(member: Member) -> int:
    """How often somebody other than this test's own requests has listed them (they are named by their user agent)."""
    count = 0
    for line in member.audit_log.read_bytes().splitlines():
        entry = json.loads(line)
        of = entry.get("objectRef") or {}
        count += entry["verb"] == "list" and of.get("resource") == "configmaps" and entry.get("userAgent") == "banyan"
    return count


def test_a_watch_misses_nothing_through_restarts_and_a_server_that_forgot(testbed_members: Testbed, tmp_path: Path) -> None:
    """What went while it was away is known too, though the server's answer to an old version is only that it is gone (410)."""
    member = begin(testbed_members, "forgets", Shape.control_plane())
    for number in range(600):  # two pages
        put(member, f"many-{number}")
    cable = Cable(member)

    async def play() -> None:
        await cable.plug()
        way = config(
            member, tmp_path / "way", json.loads(member.kubeconfig.read_text())["users"][0]["user"],
            server=f"https://127.0.0.1:{cable.port}", **{"tls-server-name": "localhost"},
        )  # fmt: skip
        async with asking(way) as api:
            informer = Informer(api, CONFIG_MAPS, Named)
            seen = Seen(informer)
            running = asyncio.create_task(informer.run())
            await asyncio.wait_for(informer.synced.wait(), SECONDS)
            assert seen.now == await asyncio.to_thread(there, member)
            pages = await asyncio.to_thread(lists, member)
            assert pages == 2

            await asyncio.to_thread(put, member, "before")
            await until("it is seen", lambda: "before" in seen.now)
            await asyncio.to_thread(member.restart_apiserver)
            for number in range(20):
                await asyncio.to_thread(put, member, f"after-{number}")
            await asyncio.to_thread(member.request, "DELETE", f"{CONFIG_MAPS}/many-7")
            wanted = await asyncio.to_thread(there, member)
            await until("the watch has caught up", lambda: seen.now == wanted)
            pages = await asyncio.to_thread(lists, member)  # a new server may say 410 to versions from before its start

            await cable.pull()
            await until("it says that it cannot see", lambda: "127.0.0.1" in informer.error)
            assert informer.failing_since is not None
            assert seen.now == wanted, "what was known stays known"
            await asyncio.to_thread(put, member, "meanwhile")
            await asyncio.to_thread(put, member, "many-8", "2")
            await asyncio.to_thread(member.request, "DELETE", f"{CONFIG_MAPS}/many-9")
            wanted = await asyncio.to_thread(there, member)
            await asyncio.to_thread(compact, member)
            await cable.plug()
            await until("it knows what happened meanwhile", lambda: seen.now == wanted)
            assert await asyncio.to_thread(lists, member) == pages + 2
            await until("it sees again", lambda: informer.failing_since is None)
            await asyncio.to_thread(put, member, "later")
            await until("it goes on", lambda: "later" in seen.now)
            informer.hurry()  # in the middle of a watch
            await asyncio.to_thread(put, member, "anew")
            await until("it is begun anew", lambda: "anew" in seen.now)
            assert informer.failing_since is None
            assert all(len(set(versions)) == len(versions) for versions in seen.versions.values()), "nothing is told twice"
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await cable.pull()

    asyncio.run(play())


def compact(member: Member) -> None:
    """etcd forgets everything but the present, and the API server's own cache begins anew."""
    revision = max(map(int, there(member).values()))
    etcd = f"http://{member.machine.address}:2379/v3/kv/compaction"
    request = urllib.request.Request(etcd, json.dumps({"revision": revision, "physical": True}).encode(), method="POST")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        assert answer.status == 200
    member.restart_apiserver()


def test_a_server_that_has_no_time_gets_it(testbed_members: Testbed) -> None:
    """429 with Retry-After, from a real server that carries out one request at a time."""
    few = ("--enable-priority-and-fairness=false", "--max-requests-inflight=1", "--max-mutating-requests-inflight=1")
    member = begin(testbed_members, "busy", Shape(controllers=False, apiserver=few))
    member.kubectl("create", "clusterrolebinding", "ops", "--clusterrole=cluster-admin", "--group=ops")
    person = member.user("person", ["ops"])  # the server never keeps its administrators waiting

    async def play() -> None:
        async with asking(person) as api:
            made = [create(api, f"busy-{number}") for number in range(60)]
            await asyncio.gather(*made)

    asyncio.run(play())
    assert len([name for name in there(member) if name.startswith("busy-")]) == 60
    codes = [json.loads(line).get("responseStatus", {}).get("code") for line in member.audit_log.read_bytes().splitlines()]
    assert 429 in codes or busy(member), "the server was never too busy: this test shows nothing"


def busy(member: Member) -> bool:
    """Refusals for want of time happen before the audit log is written."""
    text = member.request("GET", "/metrics")[1]
    return any(line.startswith("apiserver_request_total{") and 'code="429"' in line for line in str(text).splitlines())


def create(api: Api, name: str) -> Awaitable[bytes]:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    return api.request("POST", CONFIG_MAPS, body=msgspec.json.encode(body))
