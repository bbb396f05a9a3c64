"""What the common ancestor asks of those whom a move concerns, on streams of service ``move``: one question, one answer, JSON.

Every question may be asked again: the answer to a repeated one is that to the first. Pure.
"""

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput

SERVICE = "move"
MAX_BYTES = 4 * 1024 * 1024
Held = dict[str, dict[str, int]]  # application uid → component → replicas


class Check(Struct, frozen=True, kw_only=True, tag=True):
    """To everybody on either way: may this pass through you? ``names``: of the cluster and all below it, with their uids; empty on
    the way that it leaves."""

    move: str
    cluster: str
    names: dict[str, str] = {}


class Prepare(Struct, frozen=True, kw_only=True, tag=True):
    """To the new parent: take the cluster of that key in when it comes. ``height``: levels of issuing controllers from it downwards."""

    move: str
    cluster: str
    name: str
    labels: dict[str, str] = {}
    height: int = 0
    dry_run: bool = False


class Depart(Struct, frozen=True, kw_only=True, tag=True):
    """To the old parent: this child is about to go; nobody stands in for it meanwhile."""

    move: str
    cluster: str
    dry_run: bool = False


class Go(Struct, frozen=True, kw_only=True, tag=True):
    """To the cluster: your parent is another from now on."""

    move: str
    parent: str
    parent_name: str
    addresses: tuple[str, ...]
    dry_run: bool = False


class Stay(Struct, frozen=True, kw_only=True, tag=True):
    """To the cluster: the move is called off, if it has not been made. ``parent``: to whom it was."""

    move: str
    parent: str


class Where(Struct, frozen=True, kw_only=True, tag=True):
    """To the cluster: have you gone, and what did you take along?"""

    move: str
    parent: str


class Complete(Struct, frozen=True, kw_only=True, tag=True):
    """To the new parent: all that the cluster took along is counted; give it what it shall hold once these have come down to you."""

    move: str
    cluster: str
    applications: tuple[str, ...]
    old_name: str = ""


class Forget(Struct, frozen=True, kw_only=True, tag=True):
    """To the old parent: the cluster is another's. ``applications`` are no longer in your share of it."""

    move: str
    cluster: str
    applications: tuple[str, ...]
    parent_name: str = ""
    attach: int = 0  # of the cluster at its new parent, for an old one that may know nothing of the move any more


class Release(Struct, frozen=True, kw_only=True, tag=True):
    """To both parents: the move was called off."""

    move: str
    cluster: str


class Yes(Struct, frozen=True, kw_only=True, tag=True):
    addresses: tuple[str, ...] = ()  # of the new parent


class No(Struct, frozen=True, kw_only=True, tag=True):
    """For good, with the reason."""

    reason: str


class NotYet(Struct, frozen=True, kw_only=True, tag=True):
    reason: str = ""


class Gone(Struct, frozen=True, kw_only=True, tag=True):
    """``after``: the newest share that the cluster was given before; ``move``: by which it has gone."""

    held: Held
    after: int = 0
    move: str = ""


class Stayed(Struct, frozen=True, kw_only=True, tag=True):
    """It is where it was and will not go."""

    reason: str = ""


Question = Check | Prepare | Depart | Go | Stay | Where | Complete | Forget | Release
Answer = Yes | No | NotYet | Gone | Stayed


def encode(message: Question | Answer) -> bytes:
    return msgspec.json.encode(message)


def question(data: bytes) -> Question:
    return _decode(data, Question)  # type: ignore[arg-type, return-value]


def answer(data: bytes) -> Answer:
    return _decode(data, Answer)  # type: ignore[arg-type, return-value]


def _decode(data: bytes, form: type[Struct]) -> Struct:
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"a word about a move that this version does not know: {error}") from error
