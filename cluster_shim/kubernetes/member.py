"""One request of a person to the member's API server, over a connection of its own: `OpenTarget(kind="api")`.

What is written to the stream is one request: its head is judged and made anew (`impersonation`), its body is followed to its end, and
nothing is sent after it, unless the API server itself has switched protocols; then bytes pass both ways as they are. So no second
request ever travels on a connection that is signed with this shim's credential. What the API server answers passes as it is, but for two
answers that a person could not understand: 401, which is about our credential and not about theirs, and a 403 where nobody has bound
the tree's groups to a role yet; that one says what to bind.

One reader and one writer at a time; at most one head, one refusal and one piece are held here, so credit reaches from the API server to
whoever reads at the other end of the tree.
"""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.impersonation import (
    HEAD_END,
    MAX_HEAD,
    Answer,
    Body,
    Person,
    Refused,
    Request,
    answer_of,
    head_end,
    person_of,
    refusal,
    rewrite,
    status_answer,
)
from cluster_shim.kubernetes.rights import PERSON, ROLES
from cluster_shim.kubernetes.spare import Spare

log = structlog.get_logger()

PIECE = 65536
MAX_REFUSAL = 65536  # bytes of a 403 that is read whole, to add to it what a person needs
REFUSAL_SECONDS = 5.0
UNACCEPTED = (
    "the member's API server does not accept this controller's own credential (401); "
    "if that goes on, the kubeconfig that the controller uses there needs to be renewed"
)
CONNECTIONS = 256  # to one API server at a time, of people; more are refused and told so


class Door:
    """The way for people to one member's API server."""

    def __init__(self, api: Api, most: int = CONNECTIONS) -> None:
        self._api = api
        self._most = most
        self.open_streams = 0
        self._tasks = Tasks("member")
        self._spare = Spare(api, self._tasks)
        self._renewing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Streams that are open go on, until whoever opened them has had enough."""
        await self._tasks.close()

    async def open(self, target: OpenTarget) -> ByteStream:
        """A stream for one request. ShimError when the API server is not reached, the person is none, or too many are here already."""
        person = person_of(target.options)
        if self.open_streams >= self._most:
            raise ShimError(f"{self._most} requests of people are open at this member's API already; try again when some have ended")
        self.open_streams += 1
        try:
            credential = await self._api.credential_headers()
            connection = await self._spare.take() or await self._api.connect()
        except BaseException:
            self.open_streams -= 1
            raise
        return MemberStream(self, self._api, person, connection, credential)

    def closed(self, *, answered: bool) -> None:
        self.open_streams -= 1
        if answered:
            self._spare.prepare()

    async def hint(self, person: Person, namespace: str) -> str:
        """Why a 403 came, when it is because nothing is bound to the tree's groups here; "" when something is."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace or "default"},
        }
        answer = await self._api.request(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            body=msgspec.json.encode(review),
            headers={name.decode("ascii"): value.decode("ascii") for name, value in person.headers()},
        )
        if _has_rights(msgspec.json.decode(answer)):
            return ""
        role = ROLES[person.group]
        return (
            f"Nothing in this cluster is granted to the tree's group {person.group} yet. Its administrator may do so, for instance with: "
            f"kubectl create clusterrolebinding {person.group.replace(':', '-')} --clusterrole={role} --group={person.group}"
        )

    def credential_refused(self) -> None:
        """The API server answered 401 on a connection of ours: have the credential read again, off the request's way."""
        if self._renewing is None or self._renewing.done():
            self._renewing = self._tasks.spawn("credential", self._renew())

    async def _renew(self) -> None:
        try:
            await self._api.request("GET", "/api")  # a 401 makes the client read its credential again
        except ApiError as error:
            log.warning("member.credential", reason=str(error))


class MemberStream:
    """Implements `contract.ByteStream`."""

    def __init__(self, door: Door, api: Api, person: Person, connection: ByteStream, credential: list[tuple[bytes, bytes]]) -> None:
        self._door = door
        self._api = api
        self._person = person
        self._connection = connection
        self._credential = credential
        self._head = bytearray()  # of the request, until it is whole
        self._request: Request | None = None
        self._body = Body(0)
        self._instead = False  # something else is answered than what the API server says; it is in `_ready`
        self._heard = bytearray()  # of the answer, until its head is whole
        self._ready = b""  # of the answer, to be read next
        self._answered: Answer | None = None
        self._decided = asyncio.Event()  # whether the connection has switched protocols is known
        self._raw = False
        self._ended = False
        self._error: ShimError | None = None

    # --- towards the API server ---

    async def write(self, data: bytes) -> None:
        try:
            await self._write(data)
        except Refused as refused:
            self._refuse(refused)
        except ShimError as error:
            if self._error is not None:
                raise self._error from None
            raise error from None

    async def _write(self, data: bytes) -> None:
        if self._instead:
            return  # the answer says why; whatever else comes is not looked at
        if self._request is None:
            self._head += data
            end = head_end(self._head)
            if end < 0:
                return
            data = bytes(self._head[end:])
            self._request = request = self._rewritten(bytes(self._head[:end]))
            self._head.clear()
            self._body = Body(request.length)
            body, data = self._body.feed(data) if not self._body.done else (b"", data)
            await self._connection.write(request.head + body)
        elif not self._body.done:
            body, data = self._body.feed(data)
            if body:
                await self._connection.write(body)
        if data:
            await self._write_after(self._request, data)

    async def _write_after(self, request: Request, data: bytes) -> None:
        """What follows the request: bytes of the protocol that was switched to, or nothing."""
        if request.upgrade:
            await self._decided.wait()
        if self._error is not None:
            raise self._error
        if not self._raw:
            raise ShimError("one request per stream; what came after it was not sent")
        await self._connection.write(data)

    async def close_write(self) -> None:
        """After a switch of protocols whoever has closed is gone: TLS has no half-close, and the API server is told by the end of it."""
        if self._request is None and not self._instead:
            self._refuse(Refused(400, "the request ended before its head was whole"))
        elif self._raw or not self._body.done:
            self._decided.set()
            self._end()

    def abort(self, reason: str = "") -> None:
        if self._error is None:
            self._error = ShimError(reason or "aborted")
        self._decided.set()
        self._end()

    def _rewritten(self, head: bytes) -> Request:
        server = urlsplit(self._api.url)
        host = server.netloc.rpartition("@")[2].encode("ascii")
        prefix = server.path.rstrip("/").encode("ascii")
        return rewrite(head, self._person, host=host, prefix=prefix, credential=self._credential)

    def _refuse(self, refused: Refused) -> None:
        self._answer_instead(refusal(refused))

    def _answer_instead(self, answer: bytes) -> None:
        """``answer`` is all that will be read; the connection is of no further use."""
        self._instead = True
        self._ready = answer
        self._decided.set()
        self._end()

    def _end(self) -> None:
        """The connection goes; once."""
        if not self._ended:
            self._ended = True
            self._door.closed(answered=self._answered is not None)
            self._connection.abort()

    # --- from the API server ---

    async def read(self, limit: int = PIECE) -> bytes:
        if not self._ready and not self._instead:
            if self._error is not None:
                raise self._error
            await self._receive(limit)
        data, self._ready = self._ready[:limit], self._ready[limit:]
        return data

    async def _receive(self, limit: int) -> None:
        """Put what comes next into `_ready`; nothing when it was the end."""
        try:
            if self._answered is None:
                await self._receive_head()
            else:
                self._ready = await self._connection.read(limit)
        except ShimError as error:
            if not self._instead:  # else somebody was answered while this waited, and the connection went
                self._end()
                raise (self._error or error) from None
        if not self._ready and not self._instead:
            self._decided.set()
            self._end()

    async def _receive_head(self) -> None:
        """The answer's head, with what came with it; informational heads pass before it."""
        while (end := self._heard.find(HEAD_END)) < 0:
            if len(self._heard) > MAX_HEAD:
                raise ShimError(f"the member's API server answered with a head of more than {MAX_HEAD} bytes")
            data = await self._connection.read(PIECE)
            if self._instead:
                return
            if not data and self._heard:
                raise ShimError("the member's API server closed the connection in the middle of its answer")
            if not data:
                return
            self._heard += data
        answer = answer_of(bytes(self._heard[: end + 4]))
        informational = 100 <= answer.status < 200 and answer.status != 101
        taken = end + 4 if informational else len(self._heard)
        whole = bytes(self._heard[:taken])
        del self._heard[:taken]
        if informational:
            self._ready = whole
            return
        self._answered = answer
        self._raw = answer.status == 101 and self._request is not None and self._request.upgrade
        self._decided.set()
        await self._tell(answer, whole)

    async def _tell(self, answer: Answer, whole: bytes) -> None:
        """The answer, or what the person is told instead of one that they could not understand."""
        if answer.status == 401:
            self._door.credential_refused()
            self._answer_instead(status_answer(503, "ServiceUnavailable", UNACCEPTED, retry_after=1))
        elif answer.status == 403 and answer.json and 0 < answer.length <= MAX_REFUSAL:
            self._ready = await self._forbidden(answer, whole)
        else:
            self._ready = whole

    async def _forbidden(self, answer: Answer, whole: bytes) -> bytes:
        """A refusal by the member's own RBAC, with a hint when it has nothing for people of the tree."""
        head, _, body = whole.partition(HEAD_END)
        while len(body) < answer.length and (data := await self._connection.read(PIECE)):
            body += data
        try:
            status: dict[str, Any] = msgspec.json.decode(body)
            message = str(status["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            return head + HEAD_END + body
        hint = await self._hint(message)
        if not hint:
            return head + HEAD_END + body
        self._answer_instead(status_answer(403, "Forbidden", f"{message}. {hint}", details=status.get("details")))
        return self._ready

    async def _hint(self, message: str) -> str:
        if "cannot impersonate" in message:
            return (
                "That is this controller's own right to let people in: `banyan join --print-manifest` shows the ClusterRole that grants it."
            )
        if f'User "{PERSON}"' not in message or self._request is None:
            return ""
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                return await self._door.hint(self._person, namespace_of(self._request.target))
        except (TimeoutError, ShimError):
            return ""


def namespace_of(target: str) -> str:
    """Of a request's path; "" for one that belongs to none."""
    parts = target.partition("?")[0].split("/")
    return parts[parts.index("namespaces") + 1] if "namespaces" in parts[:-1] else ""


def _has_rights(review: Mapping[str, Any]) -> bool:
    """Whether somebody granted anything beyond what every authenticated user may ask about themselves."""
    rules = review.get("status", {}).get("resourceRules", [])
    own = {"authorization.k8s.io", "authentication.k8s.io"}
    return any(not own.issuperset(rule.get("apiGroups", [])) for rule in rules)
