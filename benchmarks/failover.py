"""A parent that is lost: how long its children are out of reach of the root, and what a thousand of them do at once.

The stampede's children are links and nothing else: identities that the lost parent issued, standings that it signed, and the same
course, dialler and TLS as a controller's, all in this process; their parents are controllers in processes of their own.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence

from benchmarks import records
from benchmarks.api import Refused
from benchmarks.harness import API, Site, Tree, all_ready, growing, until
from benchmarks.records import Options, Row
from cluster_controller import clock
from cluster_controller.identity import Identity, PeerCertificate, attach, certificates, holder, keys
from cluster_controller.identity import load as load_identity
from cluster_controller.identity import standing as standings
from cluster_controller.identity.standing import PermittedParent
from cluster_controller.tree import failover, wire
from cluster_controller.tree.child import chain_of
from cluster_controller.tree.failover import Policy, Ring
from cluster_controller.tunnel import Hello, JoinReply, JoinRequest, Limits, Link, Refusal, RenewReply, RenewRequest, Router, Start, Tunnel
from cluster_controller.tunnel.course import Course, Parent, Timing
from cluster_controller.tunnel.messages import ControlMessage, Welcome

KUBEEDGE = "KubeEdge: its fixed retry"
DETECTION = 15.0  # seconds after which a link counts as dead, by default


async def measure(options: Options) -> list[Row]:
    rounds, edges, crowd = (1, 2, 20) if options.quick else (3, 10, 1000)
    async with growing(options.folder) as tree:
        root, home, _ = await planted(tree)
        sites = await tree.leaves([f"edge-{number}" for number in range(edges)], home, failover_return_seconds=1.0)
        await all_ready(root, 3 + edges)
        await told(sites)
        await asyncio.sleep(0.0 if options.quick else Timing().settled)  # links that have lived: home is given its moment of grace
        killed = [await kill(root, home, sites) for _ in range(rounds)]
        records.say(f"killed: {killed}")
        restarted = [await restart(root, home, sites) for _ in range(rounds)]
        records.say(f"restarted: {restarted}")
        frozen = [await freeze(root, home, sites)]
        records.say(f"frozen: {frozen}")
    async with growing(options.folder) as tree:
        took, refused, spread = await stampede(tree, crowd)
    note = f"{edges} edges under the region that is lost, another region and the root beside it; the slowest of {rounds} rounds"
    return [
        Row(what="parent killed → all children reachable from the root", target=5, measured=max(killed), unit="s", note=note),
        Row(what="parent frozen → all children reachable from the root", target=DETECTION + 5, measured=max(frozen), unit="s"),
        Row(
            what="parent killed and restarted at once → all children reachable from the root",
            target=3,
            measured=max(restarted),
            unit="s",
            peer=KUBEEDGE,
            peer_measured=30,
            peer_source="its source",
        ),
        Row(
            what=f"{crowd:,} children whose parent dies → all carried by others",
            target=10,
            measured=took,
            unit="s",
            note=f"turned away and told a time {refused:,} times; where they went: {', '.join(map(str, spread))}",
        ),
    ]


async def planted(tree: Tree, regions: int = 2) -> tuple[Site, Site, list[Site]]:
    """root, the region that will be lost, and others."""
    root = await tree.root()
    found = [await tree.region(f"region-{number}", root) for number in range(regions)]
    await all_ready(root, 1 + regions)
    return root, found[0], found[1:]


async def told(sites: Sequence[Site]) -> None:
    """Until each has on its disk who may carry it, the other region among them."""

    async def check() -> bool:
        return all("region-1" in site.log_file.read_text(encoding="utf-8") for site in sites)

    await until("all are told of their alternates", check)


async def reachable(root: Site, sites: Sequence[Site], began: float) -> float:
    """Seconds until each has answered a request that entered at the root."""

    async def answers(site: Site) -> None:
        async def check() -> bool:
            await root.pool.request("GET", f"{API}/clusters/{site.name}/banyan{API}/clusters")
            return True

        await until(f"{site.name} answers", check)

    async with asyncio.TaskGroup() as group:
        for site in sites:
            group.create_task(answers(site))
    return time.monotonic() - began


async def at_home(root: Site, sites: Sequence[Site]) -> None:
    names = {site.name for site in sites}

    async def check() -> bool:
        items = (await root.pool.request("GET", f"{API}/clusters"))["items"]
        found = [item["status"] for item in items if item["metadata"]["name"] in names]
        return all(item.get("phase") == "Ready" and not item.get("adoptedBy") for item in found)

    await until("all are home", check, seconds=180, pause=0.2)


async def kill(root: Site, home: Site, sites: Sequence[Site]) -> float:
    began = time.monotonic()
    os.kill(home.pid, signal.SIGKILL)
    await gone(root, sites)
    took = await reachable(root, sites, began)
    home.start()
    await home.ready()
    await at_home(root, sites)
    return took


async def gone(root: Site, sites: Sequence[Site]) -> None:
    """Until the root has noticed: a request before that might still be answered by nobody but wait."""

    async def check() -> bool:
        try:
            await root.pool.request("GET", f"{API}/clusters/{sites[0].name}/banyan{API}/clusters")
        except Refused:
            return True
        return False

    with contextlib.suppress(TimeoutError):
        await until("the root has lost the region", check, seconds=1.0)


async def restart(root: Site, home: Site, sites: Sequence[Site]) -> float:
    began = time.monotonic()
    os.kill(home.pid, signal.SIGKILL)
    assert home.process is not None
    home.process.wait()
    home.start()
    took = await reachable(root, sites, began)
    await home.ready()
    await at_home(root, sites)
    return took


async def freeze(root: Site, home: Site, sites: Sequence[Site]) -> float:
    began = time.monotonic()
    os.kill(home.pid, signal.SIGSTOP)
    try:

        async def carried() -> bool:
            items = (await root.pool.request("GET", f"{API}/clusters"))["items"]
            return sum(1 for item in items if item["status"].get("adoptedBy")) == len(sites)

        await until("all are carried by others", carried, seconds=90)
        return await reachable(root, sites, began)
    finally:
        os.kill(home.pid, signal.SIGCONT)
        await at_home(root, sites)


# --- the stampede ---


class Crowd:
    """One child of the crowd: what a tunnel asks of a membership, and no more."""

    def __init__(self, identity: Identity, standing: standings.Standing, home: Parent) -> None:
        self.identity = identity
        self.standing = standing
        self.attach = 0
        self.refused = 0
        self.last = ""  # where it was when somebody looked
        parents = failover.parents(home, standing, Policy())
        self.course = Course(lambda: parents, Timing())
        self.tunnel = Tunnel(lambda: identity, self, Router(identity.uid, lambda record: False), Limits())
        self.dialling = asyncio.create_task(self.tunnel.follow(self.course, ""))

    @property
    def at(self) -> str:
        return self.tunnel.parent.peer_name if self.tunnel.parent is not None else ""

    def hello(self, parent: str) -> Hello:
        if self.tunnel.refusal is not None:
            self.refused += 1
        self.attach += 1
        me = self.identity
        signed = attach.sign(me.uid, parent, self.attach, me.spki, me.sign)
        shown = wire.standing_message(self.standing) if parent != me.parent_uid else None
        starts = (Start(number=1, id=f"start-{me.uid}"),)
        return Hello(uid=me.uid, name=me.name, starts=starts, attach=wire.attach_message(signed, me.name), standing=shown)

    async def welcome(self, hello: Hello, peer: PeerCertificate) -> Welcome | Refusal:
        return Refusal()

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        return JoinReply()

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        return RenewReply()

    def link_up(self, link: Link) -> None:
        link.send_control(self.tunnel.router.announcement())

    def link_down(self, link: Link, reason: str) -> None:
        """The course goes on."""

    def control(self, link: Link, message: ControlMessage) -> None:
        """Whatever it is: standings and paths change nothing here."""


async def stampede(tree: Tree, count: int) -> tuple[float, int, list[str]]:
    """Seconds from the parent's death until all are carried; how often one was told to come later; where they are."""
    _, home, others = await planted(tree, 4)
    lost = load_identity(home.folder / "identity")
    addresses = {site.name: address_of(site) for site in (home, *others)}
    uids = {site.name: load_identity(site.folder / "identity").uid for site in others}
    permitted = tuple(PermittedParent(uid, name, (addresses[name],), failover.SIBLING) for name, uid in uids.items())
    own = standings.Standing(child=lost.uid, parents=permitted, serial=1, signature=b"", chain=())
    children = await asyncio.to_thread(born, lost, count, own, addresses[home.name])
    crowd = [Crowd(identity, standing, Parent(lost.uid, home.name, (addresses[home.name],))) for identity, standing in children]
    try:
        await until("all are connected", lambda: everybody(crowd, {home.name}), seconds=300)
        records.say(f"{count:,} children are connected")
        began = time.monotonic()
        os.kill(home.pid, signal.SIGKILL)
        await until("all are carried", lambda: everybody(crowd, {site.name for site in others}), seconds=120)
        took = time.monotonic() - began
    finally:
        for one in crowd:
            one.dialling.cancel()
        await asyncio.gather(*(one.dialling for one in crowd), return_exceptions=True)
        await asyncio.gather(*(one.tunnel.close() for one in crowd))
    spread = [f"{name} {sum(1 for one in crowd if one.last == name)}" for name in sorted({site.name for site in others})]
    return took, sum(one.refused for one in crowd), spread


async def everybody(crowd: Sequence[Crowd], where: set[str]) -> bool:
    for one in crowd:
        one.last = one.at
    return all(one.last in where for one in crowd)


def address_of(site: Site) -> str:
    """Where a region is dialled: what it says it listens on."""
    lines = map(json.loads, site.log_file.read_text(encoding="utf-8").splitlines())
    return next(f"127.0.0.1:{line['port']}" for line in lines if line.get("event") == "tunnel.listening")


def born(lost: Identity, count: int, own: standings.Standing, address: str) -> list[tuple[Identity, standings.Standing]]:
    """Identities that the lost parent issued, each with what it signed for it."""
    now = clock.wall()
    assert lost.authority is not None
    chain = chain_of(lost)
    me = PermittedParent(lost.uid, lost.name, (address,))
    found = []
    for number in range(count):
        key = keys.generate()
        issued = lost.authority.issue(
            name=f"child-{number}", identity_request=certificates.request(key), issuing_request=b"", home=lost.uid, now=now
        )
        child = holder.member(
            name=f"child-{number}",
            key=key,
            issuing_key=None,
            issued=issued,
            tree_ca=lost.tree_ca,
            parent_uid=lost.uid,
            parent_name=lost.name,
            parent_addresses=(address,),
            token_id="",
            labels={},
            now=now,
        )
        listed = failover.permitted(child.uid, me, own, Ring(()))
        found.append((child, standings.sign(child.uid, listed, 1, chain, lost.sign)))
    return found
