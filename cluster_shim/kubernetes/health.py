"""Whether the member can be seen at all: since when not, and whether it is still the one that was joined.

A frozen API server keeps its connections open, so a silent watch proves nothing: it is asked every few seconds, for the namespace
kube-system, because that needs its datastore too and its uid is a cluster's only identity. While nothing answers, what was seen last
is no longer shown as the present; nothing is declared dead.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import clock, durable
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes.api import Api, ApiError, another
from cluster_shim.kubernetes.rights import Question

log = structlog.get_logger()

PROBE_SECONDS = 4.0  # between questions
ANSWER_SECONDS = 7.0  # an API server that is slow by 5 s is slow, not gone
BLIND_SECONDS = 11.0  # without an answer; with the two above it is shown within 15 s at worst
OWN = "cluster.json"


class Blind(Struct, frozen=True):
    """The member cannot be seen. ``since``: when it was last, for people; ``why``: what the last question met."""

    since: str
    why: str


class Sight:
    """Decides by what was answered. Pure: ``now`` on the boot-time clock, ``said`` a wall time for people."""

    def __init__(self, now: float, said: str) -> None:
        self._last, self._said = now, said
        self._why = ""
        self.blind: Blind | None = None

    def answered(self, now: float, said: str) -> bool:
        """Whether that ends a blindness."""
        self._last, self._said, self._why = now, said, ""
        was, self.blind = self.blind, None
        return was is not None

    def failed(self, now: float, why: str) -> bool:
        """Whether the member went out of sight by it, or for another reason than before."""
        self._why = why
        if now - self._last < BLIND_SECONDS:
            return False
        was, self.blind = self.blind, Blind(self._said, why)
        return was != self.blind


class Health:
    """Asks in the background. ``changed`` is called when the member goes out of sight, comes back, or fails for another reason; ``looked``
    after each question."""

    def __init__(self, api: Api, changed: Callable[[], None], failing: Callable[[], str], looked: Callable[[], None]) -> None:
        """``failing``: why nothing of what is watched is up to date though the server answers; "" while anything is."""
        self._api = api
        self._changed = changed
        self._failing = failing
        self._looked = looked
        self._sight = Sight(clock.boottime(), clock.timestamp())

    @property
    def blind(self) -> Blind | None:
        return self._sight.blind

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            why = await self._ask() or self._failing()
            if not why:
                if self._sight.answered(clock.boottime(), clock.timestamp()):
                    log.info("member.seen_again", server=self._api.url)
                    self._changed()
            elif self._sight.failed(clock.boottime(), why):
                assert self._sight.blind is not None
                log.warning("member.out_of_sight", server=self._api.url, since=self._sight.blind.since, reason=why)
                self._changed()
            self._looked()

    async def _ask(self) -> str:
        """ "" when the member answers as itself, else what is wrong."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                uid = await cluster_uid(self._api, ANSWER_SECONDS)
        except TimeoutError:
            return f"{self._api.url} does not answer within {ANSWER_SECONDS:g} s"
        except ApiError as error:
            return str(error)
        if uid != self._api.cluster_uid:
            return another(self._api.cluster_uid, uid, self._api.url)
        return ""


async def cluster_uid(api: Api, timeout: float) -> str:
    answer = await api.request("GET", "/api/v1/namespaces/kube-system", timeout=timeout, probe=True)
    try:
        return str(msgspec.json.decode(answer)["metadata"]["uid"])
    except (msgspec.DecodeError, KeyError, TypeError):
        raise ApiError(f"{api.url} answers, but not as a Kubernetes API server does") from None


def recognise(folder: Path, api: Api) -> None:
    """Remember which cluster this is, or refuse another one than before: its applications are not ours to remove. Blocks on the disk."""
    path = folder / OWN
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["uid"]
    except FileNotFoundError:
        known = ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShimError(f"{path} cannot be read ({error}); remove it if {api.url} is the cluster that this controller is for") from None
    if known and known != api.cluster_uid:
        raise ShimError(
            f"{another(known, api.cluster_uid, api.url)}; name the right kubeconfig and context, join with a data folder of its own,"
            f" or remove {path} if the cluster was made anew"
        )
    if not known:
        durable.write(path, msgspec.json.encode({"uid": api.cluster_uid, "server": api.url}))


# --- rights ---


async def missing(api: Api, questions: Iterable[Question]) -> list[Question]:
    """Which of these the member does not let us do."""
    asked = list(questions)
    answers = await asyncio.gather(
        *(api.allowed(one.verb, one.group, one.resource, subresource=one.subresource, name=one.name) for one in asked)
    )
    return [one for one, granted in zip(asked, answers, strict=True) if not granted]
