"""`banyan join`: how a new site becomes a member. The client's side, from the token to the identity folder.

The keys of a join are on disk before the parent is asked, because the token is consumed for them: if the answer is lost, the same
command asks again with the same keys and gets it. The identity itself appears in one rename. Whatever ends a join for good takes
the keys away again, so nothing half made is left behind; running the command twice is safe at every point.

The parent is known before anything secret is said: TLS proves that it holds the key whose hash is the uid in the token, and its
chain must lead to the tree CA whose digest the token pins.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.errors import (
    AlreadyExists,
    BanyanError,
    Conflict,
    Exhausted,
    InvalidInput,
    JoinError,
    NotFound,
    ProtocolError,
    Unreachable,
)
from cluster_controller.identity import certificates, contexts, folder, holder, keys, token
from cluster_controller.identity.authority import Issued
from cluster_controller.identity.folder import Pending
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.join import (
    Cause,
    JoinRevoked,
    NameTaken,
    NotApproved,
    ParentUnreachable,
    ProxyRefused,
    TokenExpired,
    TokenForeign,
    TokenUsed,
    WrongAuthority,
)
from cluster_controller.identity.token import JoinToken
from cluster_controller.resources.names import label_problem
from cluster_controller.tree import wire
from cluster_controller.tree.child import warn_of_skew
from cluster_controller.tunnel.dialer import ask
from cluster_controller.tunnel.handshake import Refused
from cluster_controller.tunnel.messages import JoinReply, JoinRequest, Refusal
from cluster_controller.tunnel.proxy import ProxyFailed

log = structlog.get_logger()

BUSY_TRIES = 20
LONGEST_PAUSE = 30.0

_FINAL: dict[Cause, type[JoinError]] = {
    Cause.USED: TokenUsed,
    Cause.EXPIRED: TokenExpired,
    Cause.FOREIGN: TokenForeign,
    Cause.NAME_TAKEN: NameTaken,
    Cause.REVOKED: JoinRevoked,
}


class Request(Struct, frozen=True, kw_only=True):
    """What `banyan join` was given. ``proxy``: a URL; "" for none; None to follow HTTPS_PROXY and NO_PROXY."""

    token: str
    name: str
    folder: Path  # DATA/identity
    labels: Mapping[str, str] = {}
    may_have_children: bool = True
    proxy: str | None = None
    patience: float = 0.0  # seconds to wait for a person's approval before NotApproved


class Joined(Struct, frozen=True):
    """``fresh``: this call made it. False: an earlier one had, with the same token."""

    identity: Identity
    fresh: bool
    provisional: bool = False


async def join(request: Request, now: Callable[[], datetime], waiting: Callable[[str], None] | None = None) -> Joined:
    """Make this site a member; returns once its identity is on disk.

    ``waiting`` is told, once, when a person has to approve. Raises a JoinError per cause (see `identity.join`), InvalidInput for a
    name that is none, AlreadyExists when the folder belongs to another cluster, Conflict when another join runs in it.
    """
    shown = token.decode(request.token)
    problem = label_problem(request.name)
    if problem:
        raise InvalidInput(problem, "name")
    done = _already(request, shown)
    if done is not None:
        return done
    made = not request.folder.exists()
    folder.create(request.folder)
    try:
        with _alone(request.folder):
            return _already(request, shown) or await _Attempt(request, shown, now, waiting).run()
    finally:
        if made:
            _remove_if_empty(request.folder)


def _already(request: Request, shown: JoinToken) -> Joined | None:
    try:
        found = holder.load(request.folder)
    except NotFound:
        return None
    if found.saved.token_id == shown.id and found.parent_uid == shown.parent:
        folder.remove(request.folder / folder.PENDING_FILE)
        return Joined(found, fresh=False)
    where = request.folder.parent
    raise AlreadyExists(f"{where} already belongs to cluster {found.name}; use another data folder (--data), or `banyan leave` first")


class _Attempt:
    """One run of the command: the keys, the questions, the outcome."""

    def __init__(self, request: Request, shown: JoinToken, now: Callable[[], datetime], waiting: Callable[[str], None] | None) -> None:
        self._request = request
        self._shown = shown
        self._now = now
        self._waiting = waiting
        self._pending = self._begin()
        self._key = keys.from_pem(self._pending.identity_key.encode(), folder.PENDING_FILE)
        self._issuing = keys.from_pem(self._pending.issuing_key.encode(), folder.PENDING_FILE)

    def _begin(self) -> Pending:
        """The keys of an earlier try with this token, or new ones."""
        found = folder.load_pending(self._request.folder)
        if found is not None and found.token_id == self._shown.id:
            return msgspec.structs.replace(found, name=self._request.name)
        identity_key, issuing_key = (keys.to_pem(keys.generate()).decode("ascii") for _ in range(2))
        return Pending(token_id=self._shown.id, name=self._request.name, identity_key=identity_key, issuing_key=issuing_key)

    async def run(self) -> Joined:
        try:
            reply = await self._persist()
            joined = await asyncio.to_thread(self._finish, reply)
        except NotApproved:
            raise  # the keys stay: the same command asks again
        except (JoinError, InvalidInput) as error:
            if not (self._pending.asked and isinstance(error, ParentUnreachable | ProxyRefused)):
                folder.remove(self._request.folder / folder.PENDING_FILE)
            raise
        folder.remove(self._request.folder / folder.PENDING_FILE)
        return joined

    async def _persist(self) -> JoinReply:
        """Ask until there is an answer that stands."""
        waited, busy = 0.0, 0
        while True:
            reply = await self._ask()
            refusal = reply.refusal
            if refusal is None:
                return reply
            cause = wire.CAUSES.get(refusal.code, Cause.INVALID)
            pause = min(max(refusal.retry_after, 0.1), LONGEST_PAUSE)
            if cause is Cause.PENDING:
                if waited >= self._request.patience:
                    raise NotApproved(f"{refusal.reason}; then run the same command again here", pause)
                if self._waiting is not None:
                    self._waiting(refusal.reason)
                    self._waiting = None
                waited += pause
            elif cause is Cause.BUSY and busy < BUSY_TRIES:
                busy += 1
            else:
                raise _refused(cause, refusal)
            await asyncio.sleep(pause)

    async def _ask(self) -> JoinReply:
        request = JoinRequest(
            token=self._request.token,
            csr=certificates.request(self._key),
            issuing_csr=certificates.request(self._issuing) if self._request.may_have_children else b"",
            name=self._request.name,
            labels=dict(self._request.labels),
            may_have_children=self._request.may_have_children,
            unix_time=self._now().timestamp(),
        )
        try:
            reply = await ask(self._shown.addresses, contexts.join_client(), request, proxy=self._request.proxy, check=self._check_parent)
        except Refused as error:
            return JoinReply(refusal=error.refusal)
        except (Unreachable, ProtocolError) as error:
            raise self._unreachable(error) from error
        if not isinstance(reply, JoinReply):
            raise ParentUnreachable(f"{self._shown.parent_name} answered something else than was asked; is it of a newer version?")
        return reply

    def _unreachable(self, error: BanyanError) -> JoinError:
        text = str(error)
        if isinstance(error, ProxyFailed):
            return ProxyRefused(f"{text}; check --proxy, HTTPS_PROXY and NO_PROXY")
        parent = f"{self._shown.parent_name} ({', '.join(self._shown.addresses)})"
        return ParentUnreachable(f"{parent} cannot be reached: {text}; check the network, then run the same command again")

    def _check_parent(self, chain: tuple[bytes, ...]) -> None:
        """Called with what the other side presented, before anything is said to it."""
        verify_parent(self._shown, chain)
        if not self._pending.asked:
            # From here on the token may be consumed for these keys.
            self._pending = msgspec.structs.replace(self._pending, asked=True)
            folder.save_pending(self._request.folder, self._pending)

    def _finish(self, reply: JoinReply) -> Joined:
        """Judge what the parent gave, then write the identity in one rename."""
        shown, request = self._shown, self._request
        tree_ca = certificates.parse_pem(reply.tree_ca, "the parent's answer")
        if len(tree_ca) != 1 or bytes.fromhex(certificates.digest(tree_ca[0])) != shown.tree_ca or reply.parent_uid != shown.parent:
            raise WrongAuthority(f"{shown.parent_name} answered with another tree's CA than the token pins; ask for a new token")
        if reply.unix_time:
            warn_of_skew(shown.parent_name, self._now(), reply.unix_time)
        issued = Issued(identity=wire.ders(reply.certificate_chain), issuing=wire.ders(reply.issuing_chain))
        identity = holder.member(
            name=reply.name or request.name,
            key=self._key,
            issuing_key=self._issuing if issued.issuing else None,
            issued=issued,
            tree_ca=tree_ca[0],
            parent_uid=shown.parent,
            parent_name=reply.parent_name or shown.parent_name,
            parent_addresses=shown.addresses,
            token_id=shown.id,
            labels=dict(request.labels),
            now=self._now(),
        )
        holder.save(request.folder, identity)
        log.info("join.done", cluster=identity.name, uid=identity.uid, parent=shown.parent_name, provisional=reply.provisional)
        return Joined(identity, fresh=True, provisional=reply.provisional)


def verify_parent(shown: JoinToken, chain: tuple[bytes, ...]) -> None:
    """Is who presents ``chain`` the parent that the token names? WrongAuthority for another tree, TokenForeign for another member."""
    try:
        parsed = [certificates.parse(one) for one in chain]
        anchor = next((one for one in parsed if bytes.fromhex(certificates.digest(one)) == shown.tree_ca), None)
        if anchor is None:
            raise WrongAuthority(
                f"whoever answers for {shown.parent_name} is not of the tree that the token pins (CA {shown.tree_ca.hex()[:16]}…); "
                "somebody stands in between, or the tree was made anew: ask for a new token"
            )
        certificates.verify_chain(parsed, anchor)
        found = certificates.peer_identity(chain)
    except InvalidInput as error:
        raise WrongAuthority(f"whoever answers for {shown.parent_name} shows no chain of the pinned tree: {error}") from error
    if found.uid != shown.parent:
        raise TokenForeign(f"the token is for {shown.parent_name}, but {found.name} answers at its address; ask for a new token")


def _refused(cause: Cause, refusal: Refusal) -> BanyanError:
    final = _FINAL.get(cause)
    if final is not None:
        return final(refusal.reason)
    if cause is Cause.BUSY:
        return Exhausted(f"the parent is busy with other joins: {refusal.reason}", refusal.retry_after)
    return InvalidInput(f"the parent does not accept this join: {refusal.reason}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the folder for one join; Conflict when another runs in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another `banyan join` runs in {path.parent}; wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(path: Path) -> None:
    if path.exists() and not any(path.iterdir()):
        path.rmdir()
