"""What the tunnel's tests share: identities of a small tree, a membership that lets everybody in, and running tunnels."""

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cluster_controller.identity import Identity, PeerCertificate, create_root, keys
from cluster_controller.identity import attach as attaches
from cluster_controller.identity.certificates import request
from cluster_controller.identity.holder import member
from cluster_controller.tunnel import (
    AttachRecord,
    ControlMessage,
    Hello,
    JoinReply,
    JoinRequest,
    Limits,
    Link,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
    Router,
    Routes,
    Stream,
    Tunnel,
    Welcome,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
T = TypeVar("T")
QUICK = Limits(backoff_first=0.01, backoff_cap=0.05)


@functools.cache
def root() -> Identity:
    with tempfile.TemporaryDirectory() as folder:
        return create_root(Path(folder) / "identity", "root", NOW)


@functools.cache
def identity(name: str, *lineage: str) -> Identity:
    """A member of the test tree; ``lineage``: its ancestors below the root, the nearest last."""
    return below(identity(lineage[-1], *lineage[:-1]) if lineage else root(), name, NOW)


def below(above: Identity, name: str, now: datetime, *addresses: str) -> Identity:
    """A child of ``above``, which it knows at ``addresses``."""
    assert above.authority is not None
    key, issuing_key = keys.generate(), keys.generate()
    issued = above.authority.issue(name=name, identity_request=request(key), issuing_request=request(issuing_key), home=above.uid, now=now)
    return member(
        name=name, key=key, issuing_key=issuing_key if issued.issuing else None, issued=issued, tree_ca=above.tree_ca,
        parent_uid=above.uid, parent_name=above.name, parent_addresses=addresses, token_id="", labels={}, now=now,
    )  # fmt: skip


def record_of(member: Identity, parent_uid: str, attach: int) -> AttachRecord:
    """A truly signed attach record."""
    signed = attaches.sign(member.uid, parent_uid, attach, member.spki, member.sign)
    return AttachRecord(
        uid=signed.uid, parent_uid=signed.parent, attach=signed.attach, nonce=signed.nonce,
        public_key=signed.public_key, signature=signed.signature, name=member.name,
    )  # fmt: skip


def verify(record: AttachRecord) -> bool:
    try:
        attaches.verify(
            attaches.Attach(
                uid=record.uid, parent=record.parent_uid, attach=record.attach, nonce=record.nonce,
                public_key=record.public_key, signature=record.signature,
            )
        )  # fmt: skip
    except Exception:
        return False
    return True


@dataclass
class Member:
    """A controller that is nothing but a tunnel, with a membership that admits every cluster of the tree."""

    identity: Identity
    limits: Limits = QUICK
    attach: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    downs: list[str] = field(default_factory=list)
    controls: list[ControlMessage] = field(default_factory=list)
    asked: list[Hello] = field(default_factory=list)  # Hellos that reached the membership
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.router = Router(self.identity.uid, verify)
        self.tunnel = Tunnel(lambda: self.identity, self, self.router, self.limits)
        self.dialling: asyncio.Task[None] | None = None

    @property
    def uid(self) -> str:
        return self.identity.uid

    def hello(self, parent: str) -> Hello:
        self.attach += 1
        return Hello(name=self.identity.name, attach=record_of(self.identity, self.identity.parent_uid, self.attach))

    async def welcome(self, hello: Hello, peer: PeerCertificate) -> Welcome | Refusal:
        assert hello.attach is not None
        self.asked.append(hello)
        if hello.attach.attach <= self.seen.get(peer.uid, 0):
            return Refusal(code=RefusalCode.REPLAYED, reason="this attach was seen before; connect again")
        self.seen[peer.uid] = hello.attach.attach
        return Welcome(name=self.identity.name, path=(self.uid,))

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        return JoinReply(name=request.name, parent_uid=self.uid)

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        return RenewReply(certificate_chain=(peer.uid.encode(),))

    def link_up(self, link: Link) -> None:
        if link.is_parent:
            link.send_control(self.router.announcement())
        else:
            assert link.hello is not None and link.hello.attach is not None
            self._tell(self.router.attach(link.hello.attach))
        self._notify()

    def link_down(self, link: Link, reason: str) -> None:
        self.downs.append(reason)
        if not link.is_parent and link.peer_uid not in self.tunnel.links:
            self._tell(self.router.detach(link.peer_uid))
        self._notify()

    def control(self, link: Link, message: ControlMessage) -> None:
        self.controls.append(message)
        if isinstance(message, Routes):
            self._tell(self.router.apply(link.peer_uid, message).onward)
        self._notify()

    def _tell(self, routes: Routes | None) -> None:
        if routes is not None and self.tunnel.parent is not None:
            self.tunnel.parent.send_control(routes)

    def _notify(self) -> None:
        self.changed.set()

    async def until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def dial(self, port: int, proxy: str | None = "") -> None:
        self.dialling = asyncio.create_task(self.tunnel.dial([f"127.0.0.1:{port}"], proxy))

    async def close(self) -> None:
        if self.dialling is not None:
            self.dialling.cancel()
            await asyncio.gather(self.dialling, return_exceptions=True)
        await self.tunnel.close()


@contextlib.asynccontextmanager
async def chain(*names: str, limits: Limits = QUICK) -> AsyncIterator[list[Member]]:
    """root and below it ``names``, each under the one before, connected over real TLS on loopback."""
    members = [Member(root(), limits)]
    try:
        port = await members[0].tunnel.serve("127.0.0.1", 0)
        for depth, name in enumerate(names):
            child = Member(identity(name, *names[:depth]), limits)
            above = members[-1]
            members.append(child)
            child.dial(port)
            await above.until(lambda: child.uid in above.tunnel.links)  # noqa: B023
            port = await child.tunnel.serve("127.0.0.1", 0)
        await members[0].until(lambda: all(members[0].router.next_hop(one.uid) for one in members[1:]))
        yield members
    finally:
        for one in reversed(members):
            await one.close()


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def read_all(stream: Stream, limit: int = 1 << 30) -> bytes:
    parts = bytearray()
    while len(parts) < limit and (data := await stream.read()):
        parts += data
    return bytes(parts)


def run(main: Callable[[], Coroutine[Any, Any, T]], *, uvloop: bool = False) -> T:
    factory = None
    if uvloop:
        import uvloop as module

        factory = module.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_bounded(main()))


async def _bounded(work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(60):
        return await work
