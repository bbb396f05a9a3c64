"""The links that stand, what is announced over them, and how they are cut.

One table for the children, one place for the parent. The router learns from a child's attach record when its link comes up and
forgets with it; whatever changes in the subtree goes up at once, and a changed path goes down.
"""

from collections.abc import Callable
from typing import Protocol

import structlog

from cluster_controller.errors import BanyanError
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.tree import wire
from cluster_controller.tunnel.messages import CloseCode, ControlMessage, Hello, Path, RenewRequest, Routes, Welcome
from cluster_controller.tunnel.router import Router

log = structlog.get_logger()

PathOf = Callable[[], tuple[tuple[str, ...], tuple[str, ...]]]


class Link(Protocol):
    """What is asked of a tunnel's link."""

    peer_uid: str
    peer_name: str
    is_parent: bool
    peer: PeerCertificate | None

    def send_control(self, message: ControlMessage) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    async def probe(self, timeout: float) -> bool: ...

    @property
    def hello(self) -> Hello | None: ...

    @property
    def welcome(self) -> Welcome | None: ...


class Links:
    """``path``: uids and names from the root down to this controller."""

    def __init__(self, uid: str, path: PathOf) -> None:
        self.router = Router(uid, wire.is_signed)
        self.parent: Link | None = None
        self._children: dict[str, Link] = {}
        self._path = path
        self._said: Path | None = None
        self.top: Callable[[], str] = lambda: ""  # the highest of the path that this controller is linked to now

    def get(self, uid: str) -> Link | None:
        return self._children.get(uid)

    def connected(self) -> frozenset[str]:
        return frozenset(self._children)

    def children(self) -> tuple[Link, ...]:
        return tuple(self._children.values())

    def up(self, link: Link) -> None:
        """A link was established. A child whose attach record is not good loses it again."""
        if link.is_parent:
            self.parent = link
            link.send_control(self.router.announcement())
            return
        self._children[link.peer_uid] = link
        if link.hello is None or link.hello.attach is None:
            return
        try:
            self._tell_parent(self.router.attach(link.hello.attach))
        except BanyanError as error:
            link.close(CloseCode.FORBIDDEN, str(error))

    def down(self, link: Link) -> None:
        if link.is_parent:
            if self.parent is link:
                self.parent = None
        elif self._children.get(link.peer_uid) is link:
            del self._children[link.peer_uid]
            self._tell_parent(self.router.detach(link.peer_uid))

    def routes(self, link: Link, message: Routes) -> None:
        """What a child says of its subtree; ProtocolError (LOOP) when that holds this controller."""
        applied = self.router.apply(link.peer_uid, message)
        for record, verdict in applied.refused:
            log.warning("route.refused", child=link.peer_name, uid=record.uid, reason=verdict.value)
        self._tell_parent(applied.onward)

    def tell_path(self) -> None:
        """To all children: where this controller stands now, and how far up it is linked."""
        path, names = self._path()
        message = Path(uids=path, names=names, top=self.top())
        if message == self._said:
            return  # who came since was told in Welcome
        self._said = message
        for link in self._children.values():
            link.send_control(message)

    def ask_renewal(self, request: RenewRequest) -> bool:
        """Over the parent link; False when there is none."""
        if self.parent is None:
            return False
        self.parent.send_control(request)
        return True

    def supersede(self, uid: str, reason: str) -> None:
        """The same cluster is about to have a new link: what is known below it stays until it says otherwise."""
        old = self._children.pop(uid, None)
        if old is not None:
            old.close(CloseCode.SUPERSEDED, reason)

    def cut(self, uid: str, code: CloseCode, reason: str) -> None:
        """Tell a child why, then close its link at once; `down` follows."""
        link = self._children.get(uid)
        if link is None:
            return
        log.warning("child.cut", cluster=link.peer_name, uid=uid, code=code.name, reason=reason)
        if code is CloseCode.REVOKED:
            link.send_control(wire.revoked_message(uid, reason))
        link.close(code, reason)

    def _tell_parent(self, routes: Routes | None) -> None:
        if routes is not None and self.parent is not None:
            self.parent.send_control(routes)
