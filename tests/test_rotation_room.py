"""A rotation on its way through a tree: each level follows once the one above it has, and whatever is cut short is begun again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_controller import rotation as rooms
from cluster_controller.documents import decode, encode
from cluster_controller.errors import Conflict
from cluster_controller.identity import Identity, create_root, load
from cluster_controller.identity import rotation as keys
from cluster_controller.identity.holder import save
from cluster_controller.resources import kinds
from cluster_controller.rotation import KIND, NAME, Rotation, State
from cluster_controller.store import Key, Store
from cluster_controller.tree import records
from cluster_controller.tree.admission import Member
from cluster_controller.tree.child import IdentityHolder
from tests.identity.family import NOW, below
from tests.identity.test_rotation import renewed_by


class Site:
    """One controller as far as a rotation goes; ``parent`` renews it."""

    def __init__(self, store: Store, folder: Path, parent: "Site | None") -> None:
        self.store = store
        self.holder = IdentityHolder(folder, load(folder))
        self.parent = parent
        self.away = False  # its parent is out of reach
        self.asked = 0
        self.told = 0
        self.rotation = Rotation(store, self.holder, renew=self.renew, changed=self.changed, wall=lambda: NOW)
        self.rotation.load()
        store.subscribe(self.rotation.changed, kinds=self.rotation.heeds)
        self.task = asyncio.create_task(self.rotation.run())

    def changed(self) -> None:
        self.told += 1

    async def renew(self) -> bool:
        self.asked += 1
        if self.away or self.parent is None:
            return False
        parent = self.parent
        return await self.holder.change(lambda identity: renewed_by(parent.holder(), identity))

    async def hear(self) -> None:
        """What sync does: the parent's word arrives."""
        assert self.parent is not None
        stored = self.parent.store.get(Key(f"down/{self.holder().uid}", KIND, "", NAME))
        if stored is not None:
            await self.store.commit(lambda tx: tx.put(Key("desired", KIND, "", NAME), stored.document, uid=NAME))

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not check():
                await asyncio.sleep(0)

    def passed_on(self, child: "Site") -> bool:
        return self.store.get(Key(f"down/{child.holder().uid}", KIND, "", NAME)) is not None

    def said_to(self, child: "Site") -> keys.Announcement:
        stored = self.store.get(Key(f"down/{child.holder().uid}", KIND, "", NAME))
        assert stored is not None
        return decode(stored.document, rooms.TreeAuthority).spec

    async def report(self, *others: "Site") -> None:
        """What the census writes: a Cluster for each, with the CA that its certificates hang from."""
        for site in (self, *others):
            identity = site.holder()
            facts = kinds.ClusterFacts(authority=identity.authority_name)
            status = kinds.ClusterState(uid=identity.uid, phase="Ready", facts=facts)
            document = kinds.Cluster(metadata=kinds.Metadata(name=identity.name, uid=identity.uid), status=status)
            key = Key("own", "Cluster", "", identity.name)
            await self.store.commit(lambda tx: tx.put(key, encode(document), uid=identity.uid))  # noqa: B023


def play(tmp_path: Path, body: Callable[[Site, Site, Site], Awaitable[Any]]) -> None:
    async def main() -> None:
        sites: list[Site] = []
        identity: Identity | None = None
        for name in ("root", "region-a", "edge-1"):
            folder = tmp_path / name / "identity"
            if identity is None:
                identity = create_root(folder, name, NOW)
            else:
                identity = below(identity, name)
                save(folder, identity)
                parent, uid = sites[-1], identity.uid
                await parent.store.commit(lambda tx: records.put_member(tx, Member(uid=uid, name=name, state="member")))  # noqa: B023
            sites.append(Site(await Store.open(tmp_path / name), folder, sites[-1] if sites else None))
        root, region, edge = sites
        try:
            await body(root, region, edge)
        finally:
            for site in sites:
                site.task.cancel()
                await asyncio.gather(site.task, return_exceptions=True)
                await site.store.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SPREAD_SECONDS", 0.0)
    monkeypatch.setattr(rooms, "RETRY_SECONDS", (0.0, 0.0))


def newest(site: Site) -> bool:
    return len(site.holder().anchors) == 2 and site.holder().hangs_from_newest


def test_it_goes_down_level_by_level_and_ends_when_nobody_is_missing(tmp_path: Path) -> None:
    async def body(root: Site, region: Site, edge: Site) -> None:
        before = root.holder().authority_name
        state = await root.rotation.begin()
        assert (state.phase, state.authority != before) == ("both", True)
        await root.until(lambda: root.passed_on(region))
        region.away = True
        await region.hear()
        await region.until(lambda: region.asked > 3)  # it asks again and again
        assert len(region.holder().anchors) == 2 and not region.passed_on(edge)  # whoever is below would not be renewed yet
        await root.report(region, edge)
        with pytest.raises(Conflict, match="2 clusters still have certificates under the old key"):
            await root.rotation.finish(force=False)
        region.away = False
        await region.until(lambda: newest(region) and region.passed_on(edge))
        await edge.hear()
        await edge.until(lambda: newest(edge))
        await root.report(region, edge)
        assert root.rotation.state().missing == () and edge.told >= 2
        done: State = await root.rotation.finish(force=False)
        assert (done.phase, len(root.holder().anchors)) == ("closed", 1)
        for parent, child in ((root, region), (region, edge)):
            await parent.until(lambda: parent.said_to(child).closed)  # noqa: B023
            await child.hear()
            await child.until(lambda: len(child.holder().anchors) == 1)  # noqa: B023
        assert load(edge.holder.folder).anchors == root.holder().anchors
        with pytest.raises(Conflict, match="not being rotated"):
            await root.rotation.finish(force=True)
        await root.rotation.begin()  # and there may be another

    play(tmp_path, body)


def test_a_user_with_an_older_certificate_is_waited_for(tmp_path: Path) -> None:
    async def body(root: Site, region: Site, edge: Site) -> None:
        for name, credential, made in (
            ("ann", "certificate", "2020-01-01"),
            ("ci", "token", "2020-01-01"),
            ("bob", "certificate", "2030-01-01"),
        ):
            spec = kinds.UserSpec(credential=credential)  # type: ignore[arg-type]
            user = kinds.User(
                metadata=kinds.Metadata(name=name, uid=name, creation_timestamp=f"{made}T00:00:00Z"),
                spec=spec,
                status=kinds.UserStatus(phase="Active"),
            )
            await root.store.commit(lambda tx: tx.put(records.user_key(name), encode(user), uid=name))  # noqa: B023
        await root.rotation.begin()
        assert root.rotation.state().users == ("ann",)
        await root.report()
        with pytest.raises(Conflict, match="1 users have older certificates"):
            await root.rotation.finish(force=False)
        assert (await root.rotation.finish(force=True)).phase == "closed"

    play(tmp_path, body)


def test_what_proves_nothing_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def body(root: Site, region: Site, edge: Site) -> None:
        await root.rotation.begin()
        said = keys.announcement(root.holder(), "2026-01-01T00:00:00Z")
        lie = rooms.TreeAuthority(
            metadata=kinds.Metadata(name=NAME, uid=NAME), spec=keys.Announcement(authority=said.authority, cross=said.authority)
        )
        await region.store.commit(lambda tx: tx.put(Key("desired", KIND, "", NAME), encode(lie), uid=NAME))
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(region.holder().anchors) == 1 and region.asked == 0 and not region.passed_on(edge)

    play(tmp_path, body)


def test_two_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    """A renewal whose answer comes while a new CA is taken in must not bring the identity from before it back."""

    async def body(root: Site, region: Site, edge: Site) -> None:
        await root.rotation.begin()
        said = keys.announcement(root.holder(), "2026-01-01T00:00:00Z")
        await asyncio.gather(
            region.holder.change(lambda identity: keys.accept(identity, said)),
            region.holder.change(lambda identity: renewed_by(root.holder(), identity)),
        )
        assert newest(region) and load(region.holder.folder).anchors == region.holder().anchors

    play(tmp_path, body)
