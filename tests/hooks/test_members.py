"""Tokens, users and clusters: what cannot be changed, what is final, and who may remove whom."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.documents import encode
from cluster_controller.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated
from cluster_controller.resources import kinds
from cluster_controller.resources.registry import REGISTRY
from cluster_controller.store import Key, Tx
from cluster_controller.sync import conflicts
from cluster_controller.tree import records
from cluster_controller.tree.admission import Member
from cluster_controller.tree.listing import show
from openapi.hooks.dispatch import Hooks
from openapi.hooks.members import ClusterHooks, TokenHooks, UserHooks
from openapi.services import Ask, User, Write
from tests.tree.site import Clock, Site, root, run


class Bench:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.store = site.store
        self.connected: set[str] = set()
        self.hooks = Hooks(
            {
                "JoinToken": TokenHooks(site.membership),
                "User": UserHooks(site.membership),
                "Cluster": ClusterHooks(site.store, site.membership, site.uid, lambda uid: uid in self.connected),
            }
        )

    def _write(self, tx: Tx, kind: str, document: dict[str, Any], previous: dict[str, Any] | None) -> Write:
        return Write(tx, REGISTRY[kind], "", document["metadata"]["name"], User("ada"), document, previous, self.site.clock())

    async def create(self, kind: str, name: str, **spec: Any) -> dict[str, Any]:
        document: dict[str, Any] = {"metadata": {"name": name, "uid": f"{kind}-{name}"}, "spec": spec}

        def work(tx: Tx) -> dict[str, Any]:
            shown = self.hooks.prepare_create(self._write(tx, kind, document, None))
            tx.put(Key("own", kind, "", name), msgspec.json.encode(document), uid=f"{kind}-{name}")
            return dict(shown or {})

        return await self.store.commit(work)

    def document(self, kind: str, name: str) -> dict[str, Any]:
        stored = self.store.get(Key("own", kind, "", name))
        assert stored is not None
        document: dict[str, Any] = msgspec.json.decode(stored.document)
        return document

    async def update(self, kind: str, name: str, **spec: Any) -> None:
        previous = self.document(kind, name)
        document = {**previous, "spec": {**previous["spec"], **spec}}

        def work(tx: Tx) -> None:
            self.hooks.prepare_update(self._write(tx, kind, document, previous))
            tx.put(Key("own", kind, "", name), msgspec.json.encode(document), uid=f"{kind}-{name}")

        await self.store.commit(work)

    async def delete(self, kind: str, name: str) -> None:
        document = self.document(kind, name)

        def work(tx: Tx) -> None:
            self.hooks.prepare_delete(self._write(tx, kind, document, None))
            tx.delete(Key("own", kind, "", name))

        await self.store.commit(work)

    async def ask(self, name: str, what: str, method: str = "POST", /, **body: Any) -> dict[str, Any]:
        return dict(await self.hooks.subresource(Ask(REGISTRY["Cluster"], "", name, what, method, {}, body, User("ada"))))

    async def member(self, uid: str, name: str, state: Any = "member") -> None:
        member = Member(uid=uid, name=name, state=state)

        def work(tx: Tx) -> None:
            records.put_member(tx, member)
            show(tx, member, (self.site.uid, self.site.name), "Pending" if state == "pending" else "Ready")

        await self.store.commit(work)

    def state(self, uid: str) -> str:
        return next(member.state for member in self.site.membership.members() if member.uid == uid)


def play(folder: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with root(folder, Clock()) as site:
            await main(Bench(site))

    run(whole())


GRANTS = [{"role": "edit", "namespace": "shop"}]


def test_a_token_is_shown_once_and_never_changed(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        shown = await bench.create("JoinToken", "t")
        text = shown["status"]["token"]
        assert text and text not in msgspec.json.encode(bench.document("JoinToken", "t")).decode()
        await bench.update("JoinToken", "t")
        with pytest.raises(Forbidden, match="cannot be changed"):
            await bench.update("JoinToken", "t", approve=True)

    play(tmp_path, main)


def test_a_users_credential_is_shown_once_and_only_a_revocation_can_change(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        shown = await bench.create("User", "alice", grants=GRANTS, credential="token")
        token = shown["status"]["token"]
        assert token not in msgspec.json.encode(bench.document("User", "alice")).decode()
        assert bench.site.membership.authenticate_bearer(token, bench.site.clock()).name == "alice"
        with pytest.raises(Forbidden, match=r"only spec\.revoked"):
            await bench.update("User", "alice", grants=[{"role": "admin"}])
        await bench.update("User", "alice", revoked=False)
        await bench.update("User", "alice", revoked=True)
        assert bench.document("User", "alice")["status"]["phase"] == "Revoked"
        with pytest.raises(Unauthenticated, match="revoked"):
            bench.site.membership.authenticate_bearer(token, bench.site.clock())
        with pytest.raises(Forbidden, match="final"):
            await bench.update("User", "alice", revoked=False)
        with pytest.raises(InvalidInput, match="revoked from the start"):
            await bench.create("User", "bob", grants=GRANTS, revoked=True)

    play(tmp_path, main)


@pytest.mark.parametrize("revoked", [True, False])
def test_a_credential_does_not_outlive_its_record(tmp_path: Path, revoked: bool) -> None:
    async def main(bench: Bench) -> None:
        await bench.create("User", "alice", grants=GRANTS)
        identifier = bench.document("User", "alice")["status"]["credentialId"]
        if revoked:
            await bench.update("User", "alice", revoked=True)
        await bench.delete("User", "alice")
        barred = [msgspec.json.decode(stored.document)["spec"] for stored in bench.store.list("own", "Revocation")]
        assert [(one["subject"], one["id"], one["name"]) for one in barred] == [("user", identifier, "alice")]
        assert barred[0]["reason"] == "revoked by ada"

    play(tmp_path, main)


def test_a_member_that_is_gone_is_forgotten_and_one_that_is_connected_is_not(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.member("e1", "edge-1")
        await bench.store.commit(lambda tx: tx.put(Key("down/e1", "Work", "", "w"), b"{}", uid="w"))
        await bench.store.commit(lambda tx: tx.put(Key("up/e1", "WorkStatus", "", "w"), b"{}", uid="w"))
        bench.connected.add("e1")
        with pytest.raises(Conflict, match="edge-1 is connected"):
            await bench.delete("Cluster", "edge-1")
        assert bench.state("e1") == "member"
        bench.connected.clear()
        await bench.delete("Cluster", "edge-1")
        assert bench.state("e1") == "removed"
        assert (list(bench.store.scan("down/e1")), list(bench.store.scan("up/e1"))) == ([], [])
        assert bench.store.list("own", "Cluster") == []

    play(tmp_path, main)


def test_a_revoked_member_stays_revoked_when_it_is_removed(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.member("e1", "edge-1")
        answer = await bench.ask("edge-1", "revoke", reason="stolen")
        assert (answer["state"], answer["uid"]) == ("revoked", "e1")
        await bench.delete("Cluster", "edge-1")
        assert bench.state("e1") == "revoked"

    play(tmp_path, main)


def test_neither_itself_nor_a_grandchild_can_be_removed_from_here(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        for name, uid, parent in (("root", bench.site.uid, ""), ("deep", "d", "edge-1")):
            status = kinds.ClusterState(uid=uid, parent=parent)
            document = kinds.Cluster(metadata=kinds.Metadata(name=name, uid=uid), status=status)
            key = Key("own", "Cluster", "", name)
            await bench.store.commit(lambda tx, key=key, document=document, uid=uid: tx.put(key, encode(document), uid=uid))  # type: ignore[misc]
        with pytest.raises(Forbidden, match="this controller itself"):
            await bench.delete("Cluster", "root")
        with pytest.raises(Forbidden, match="banyan --at edge-1 cluster remove deep"):
            await bench.delete("Cluster", "deep")

    play(tmp_path, main)


def test_words_of_a_person_about_a_member(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await bench.member("e1", "edge-1", "pending")
        assert (await bench.ask("edge-1", "approve"))["state"] == "approved"
        with pytest.raises(InvalidInput, match="instance is a text"):
            await bench.ask("edge-1", "keep")
        for wrong in (7, "x" * 1025, None):
            with pytest.raises(InvalidInput, match="reason is a text"):
                await bench.ask("edge-1", "revoke", reason=wrong)
        with pytest.raises(NotFound, match="no subresource nonsense"):
            await bench.ask("edge-1", "nonsense")

    play(tmp_path, main)


def test_conflicts_are_listed_and_decided_where_they_are(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        document = kinds.Cluster(metadata=kinds.Metadata(name="root"), status=kinds.ClusterState(uid=bench.site.uid))
        theirs = conflicts.Theirs("uid-a", 3, b"hash", "history", 9, b'{"metadata":{"name":"a","namespace":"shop"}}')

        def conflict(tx: Tx) -> None:
            tx.put(Key("own", "Cluster", "", "root"), encode(document), uid=bench.site.uid)
            tx.put(Key("desired", "ConfigMap", "", "a"), b'{"old":1}', uid="uid-a")
            tx.put(Key("desired", "Model", "", "b"), b"{}", uid="uid-b")
            conflicts.write(tx, Key("desired", "ConfigMap", "", "a"), conflicts.Mark("uid-a", theirs))
            conflicts.write(tx, Key("desired", "Model", "", "b"), conflicts.Mark("uid-b", None))

        await bench.store.commit(conflict)
        with pytest.raises(Forbidden, match="decided at edge-1"):
            await bench.ask("edge-1", "conflicts", "GET")
        assert (await bench.ask("root", "conflicts", "GET"))["items"] == [
            {"kind": "ConfigMap", "name": "a", "object": "shop/a", "held": True, "parentHas": True},
            {"kind": "Model", "name": "b", "object": "", "held": True, "parentHas": False},
        ]
        for body, field in (({"keep": "both"}, "keep"), ({"keep": "root", "name": "a"}, "kind"), ({}, "keep")):
            with pytest.raises(InvalidInput) as refused:
                await bench.ask("root", "conflicts", **body)
            assert refused.value.field == field
        assert (await bench.ask("root", "conflicts", keep="root", kind="ConfigMap", name="other"))["settled"] == 0
        assert (await bench.ask("root", "conflicts", keep="root", kind="ConfigMap", name="a"))["settled"] == 1
        taken = bench.store.get(Key("desired", "ConfigMap", "", "a"))
        assert taken is not None and (taken.version, taken.document) == (3, theirs.document)
        assert (await bench.ask("root", "conflicts", keep="field"))["settled"] == 1
        assert (await bench.ask("root", "conflicts", "GET"))["items"] == []
        assert bench.store.get(Key("desired", "Model", "", "b")) is not None

    play(tmp_path, main)


@pytest.mark.parametrize(
    ("kind", "held", "parent", "called"),
    [
        ("Work", b'{"spec":{"application":{"name":"emotion","namespace":"shop"}},"metadata":{"name":"an-uid"}}', None, "shop/emotion"),
        ("Work", b"{}", b'{"spec":{"application":{"name":"emotion","namespace":"shop"}}}', "shop/emotion"),
        ("Revocation", b'{"kind":"Revocation","spec":{"name":"edge-7","id":"x"},"metadata":{"name":"x"}}', None, "edge-7"),
    ],
)
def test_a_conflict_is_called_what_people_call_it(tmp_path: Path, kind: str, held: bytes, parent: bytes | None, called: str) -> None:
    async def main(bench: Bench) -> None:
        document = kinds.Cluster(metadata=kinds.Metadata(name="root"), status=kinds.ClusterState(uid=bench.site.uid))
        theirs = conflicts.Theirs("other", 3, b"hash", "history", 9, parent) if parent else None

        def conflict(tx: Tx) -> None:
            tx.put(Key("own", "Cluster", "", "root"), encode(document), uid=bench.site.uid)
            tx.put(Key("desired", kind, "", "a"), held, uid="ours")
            conflicts.write(tx, Key("desired", kind, "", "a"), conflicts.Mark("ours", theirs))

        await bench.store.commit(conflict)
        assert [item["object"] for item in (await bench.ask("root", "conflicts", "GET"))["items"]] == [called]

    play(tmp_path, main)


def test_kinds_without_hooks_need_nothing(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        assert await bench.create("ConfigMap", "x") == {}
        await bench.update("ConfigMap", "x", a=1)
        await bench.delete("ConfigMap", "x")
        with pytest.raises(LookupError):
            await bench.hooks.subresource(Ask(REGISTRY["ConfigMap"], "", "x", "y", "GET", {}, {}, User("ada")))

    play(tmp_path, main)
