"""One controller per member: a Lease in the member says whose it is, and any other controller is refused.

Whoever reconciles takes all that bears our labels for its own, and removes what nobody asked it for. So two controllers on one
cluster would undo each other's work. The Lease `banyan-owner` names the cluster (the uid in its tree) whose controller manages this
member, and is renewed by it. Another uid never takes it by itself, however long it was not renewed: what its owner runs is still there,
and a controller that is switched off for a month is not gone. A person says so, by the uid that is to give way (`take_over`). That
counts for this one owner, so two controllers with such a setting do not take it from each other for ever.

The same uid goes on at once, as a controller that was killed and started, or restored from its backup, does. Of two that run with the same
uid (a copied data folder), the later one has it: the earlier one sees that at its next renewal, ends, and comes back only when the
other's renewals have ceased; that is judged by its own clock, for theirs is another machine's.

A member that does not grant these rights is managed as before, unguarded; the log names what is missing.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import clock
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import names
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.rights import OWNER as LEASE
from cluster_shim.kubernetes.rights import OWNER_NAMESPACE as NAMESPACE

log = structlog.get_logger()

PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
CLUSTER = "banyan.dev/cluster"  # annotation: the owner's name in its tree, for people
INSTANCE = "banyan.dev/instance"  # annotation: which of the processes of that uid
RENEW_SECONDS = 10.0
CEASED_SECONDS = 30.0  # without a renewal: nobody is there any more
GIVE_WAY_SECONDS = RENEW_SECONDS + 5.0  # until the one before has seen that it is not the owner any more
TRIES = 3


class Owner(Struct, frozen=True):
    uid: str
    name: str = ""


class _Meta(Struct, frozen=True, rename="camel", omit_defaults=True):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Spec(Struct, frozen=True, rename="camel", omit_defaults=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Struct, frozen=True, rename="camel"):
    """coordination.k8s.io/v1, as far as it is ours."""

    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()
    api_version: str = "coordination.k8s.io/v1"
    kind: str = "Lease"

    @property
    def uid(self) -> str:
        return self.spec.holder_identity or ""

    @property
    def instance(self) -> str:
        return self.metadata.annotations.get(INSTANCE, "")


Verdict = Literal["free", "mine", "another start of mine", "given up", "taken"]


def judge(lease: Lease | None, owner: Owner, instance: str, take_over: str) -> Verdict:
    """Whose it is. Pure. ``free``, ``another start of mine`` and ``given up`` may be had, ``mine`` is, ``taken`` is not."""
    if lease is None or not lease.uid:
        return "free"
    if lease.uid == owner.uid:
        return "mine" if lease.instance == instance else "another start of mine"
    return "given up" if take_over and lease.uid == take_over else "taken"


def taken(url: str, lease: Lease) -> str:
    name = lease.metadata.annotations.get(CLUSTER, "")
    who = f"{name} ({lease.uid})" if name else lease.uid
    return (
        f"{url} is managed by the controller of another cluster already, {who}, which last said so at {lease.spec.renew_time or 'no time'}:"
        f" two would undo each other's work. Leave it to that one; or, if that one is gone for good, let this one take its place with"
        f" --kubernetes take_over={lease.uid}"
    )


class Tenure:
    """One process's hold on a member, over all its reconciliations."""

    def __init__(self, owner: Owner, take_over: str = "") -> None:
        self._owner = owner
        self._take_over = take_over
        self._instance = secrets.token_hex(8)
        self._lease: Lease | None = None  # as we wrote it last; None: it is not ours, or not guarded
        self._ousted: tuple[str, float] | None = None  # resourceVersion of who took it from us with our own uid, and when that was new
        self._waits_until = 0.0  # boot-time clock: the one before has to see first that it gave way
        self._told_rights = False

    async def claim(self, api: Api) -> None:
        """It is ours afterwards. ShimError when it is another's, or will be ours in a moment."""
        self._lease = None
        for _ in range(TRIES):
            try:
                if await self._claim(api):
                    break
            except ApiError as error:
                if error.status not in (403, 404):
                    raise
                self._unguarded(error)
                return
        else:
            raise ShimError(f"{api.url}: the Lease {NAMESPACE}/{LEASE} is being changed all the time; who else writes it?")
        if clock.boottime() < self._waits_until:
            raise ShimError(
                f"{api.url} was taken over from {self._take_over}; whoever managed it is given {GIVE_WAY_SECONDS:g} s to notice"
            )

    async def keep(self, api: Api, lost: Callable[[ShimError], None]) -> None:
        """Renew until it is another's; ``lost`` is told, once. While the server is not reached, nobody writes there."""
        while self._lease is not None:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew(api)
            except ApiError as error:
                log.info("member.owner_not_renewed", server=api.url, reason=str(error))
            except ShimError as error:
                log.warning("member.owner_lost", server=api.url, reason=str(error))
                self._lease = None
                lost(error)

    async def _claim(self, api: Api) -> bool:
        """False when somebody else wrote it at the same moment."""
        lease = await self._read(api)
        verdict = judge(lease, self._owner, self._instance, self._take_over)
        if verdict == "taken":
            assert lease is not None
            raise ShimError(taken(api.url, lease))
        if lease is not None and verdict == "another start of mine":
            self._check_ousted(api, lease)
        if not await self._write(api, lease):
            return False
        if verdict == "given up":
            log.warning("member.taken_over", server=api.url, before=self._take_over)
            self._waits_until = clock.boottime() + GIVE_WAY_SECONDS
        return True

    def _check_ousted(self, api: Api, lease: Lease) -> None:
        """Whoever took it from us with our own uid has it for as long as it renews it."""
        if self._ousted is None:
            return
        now, (version, since) = clock.boottime(), self._ousted
        if lease.metadata.resource_version != version:
            self._ousted = (lease.metadata.resource_version, now)
        elif now - since >= CEASED_SECONDS:
            self._ousted = None
            return
        raise ShimError(
            f"{api.url} is managed by another process of this same controller ({self._owner.uid}), which was started later: is its data"
            " folder in use twice? End one of them; this one goes on when the other has been silent for"
            f" {CEASED_SECONDS:g} s"
        )

    async def _renew(self, api: Api) -> None:
        assert self._lease is not None
        if await self._write(api, self._lease):
            return
        lease = await self._read(api)
        verdict = judge(lease, self._owner, self._instance, "")
        if lease is not None and verdict == "taken":
            raise ShimError(taken(api.url, lease))
        if lease is not None and verdict == "another start of mine":
            self._ousted = (lease.metadata.resource_version, clock.boottime())
            self._check_ousted(api, lease)
        await self._write(api, lease)  # removed, or touched by a person: said again

    async def _read(self, api: Api) -> Lease | None:
        try:
            return msgspec.json.decode(await api.request("GET", f"{PATH}/{LEASE}"), type=Lease)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        except msgspec.DecodeError as error:
            raise ApiError(f"{PATH}/{LEASE} is not as it was written: {error}", status=500) from None

    async def _write(self, api: Api, before: Lease | None) -> bool:
        """Ours, from now on. False when it is not as ``before`` any more."""
        now = clock.timestamp()
        is_ours = before is not None and before.uid == self._owner.uid
        made = Lease(
            metadata=_Meta(
                name=LEASE,
                namespace=NAMESPACE,
                resource_version=before.metadata.resource_version if before is not None else "",
                labels={names.MANAGED_BY: names.MANAGER},
                annotations={INSTANCE: self._instance} | ({CLUSTER: self._owner.name} if self._owner.name else {}),
            ),
            spec=_Spec(
                holder_identity=self._owner.uid,
                lease_duration_seconds=int(CEASED_SECONDS),
                acquire_time=before.spec.acquire_time if before is not None and is_ours else micro(now),
                renew_time=micro(now),
                lease_transitions=0 if before is None else (before.spec.lease_transitions or 0) + (not is_ours),
            ),
        )
        method, path = ("POST", PATH) if before is None else ("PUT", f"{PATH}/{LEASE}")
        try:
            answer = await api.request(method, path, body=msgspec.json.encode(made))
        except ApiError as error:
            if error.status == 409 or (error.status == 404 and before is not None):
                return False
            raise
        self._lease = msgspec.json.decode(answer, type=Lease)
        return True

    def _unguarded(self, error: ApiError) -> None:
        if not self._told_rights:
            self._told_rights = True
            log.warning("member.owner_not_guarded", reason=str(error), without_it="another controller on this cluster is not refused")


def micro(timestamp: str) -> str:
    """A wall time of `clock.timestamp` as a MicroTime."""
    return timestamp if "." in timestamp else timestamp.replace("Z", ".000000Z")
