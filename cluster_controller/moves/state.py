"""A move as the common ancestor knows it: what to ask next, and what an answer changes. Pure.

The cluster itself decides: its move is made when the identity on its disk names the new parent, and at no other moment. So the
ancestor never undoes what the cluster may have done: it asks until the cluster has said where it is.

Invariants: the cluster is told to go only when everybody on both ways has agreed; what it took along is counted once, when it has
said so itself and is seen under its new parent; a move is called off only with the cluster's own word that it stays, or before it
was told; every step is on the disk before the next question, and every question may be asked again.
"""

from enum import StrEnum

import msgspec
from msgspec import Struct

from cluster_controller.moves import words
from cluster_controller.moves.words import Answer, Gone, Held, No, NotYet, Question, Stayed, Yes

ASKING_TRIES = 5  # before the cluster was told anything, somebody out of reach ends the move


class Phase(StrEnum):
    ASKING = "Asking"
    GOING = "Going"  # the cluster has been told, or is about to be
    ARRIVING = "Arriving"  # it has gone; it is not yet seen and counted under its new parent
    CLOSING = "Closing"  # counted; both parents are told the rest
    DONE = "Done"
    UNDOING = "Undoing"
    UNDONE = "Undone"


ENDED = frozenset({Phase.DONE, Phase.UNDONE})


class Move(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``out`` and ``into`` are uids from the ancestor's child down to the cluster, on the way that it leaves and on its new one."""

    id: str
    cluster: str
    name: str
    parent: str
    parent_name: str
    old: str
    old_name: str
    out: tuple[str, ...]
    into: tuple[str, ...]
    phase: Phase = Phase.ASKING
    labels: dict[str, str] = {}
    names: dict[str, str] = {}
    height: int = 0
    by: str = ""
    began: str = ""
    ended: str = ""
    reason: str = ""  # why it was called off, or what it waits for
    agreed: tuple[str, ...] = ()  # whose answers are in, of this phase: `key` of the question
    addresses: tuple[str, ...] = ()  # of the new parent
    told: bool = False  # the cluster may have been told to go
    held: Held | None = None
    after: int = 0
    counted: tuple[str, ...] = ()  # applications that were counted over
    tries: int = 0
    again: int = 0  # it was made before; the old parent lists the cluster once more, which has this attach by now

    @property
    def active(self) -> bool:
        return self.phase not in ENDED

    @property
    def stage(self) -> "Move":
        """How far it has come: what a look at it that only found somebody out of reach, or not ready, leaves as it was."""
        return msgspec.structs.replace(self, reason="", tries=0)

    @property
    def unsettled(self) -> bool:
        """The cluster may be on its new way before it is counted there."""
        return self.phase in (Phase.GOING, Phase.ARRIVING)


class Ask(Struct, frozen=True):
    whom: str
    question: Question

    @property
    def key(self) -> str:
        return f"{type(self.question).__name__}/{self.whom}"


def asks(move: Move, applications: tuple[str, ...] = ()) -> tuple[Ask, ...]:
    """What to ask now. ``applications``: those of ``counted`` that there still are, that the new parent and the old one wait for."""
    match move.phase:
        case Phase.ASKING:
            wanted = _permissions(move)
        case Phase.GOING:
            wanted = (Ask(move.cluster, go(move)),)
        case Phase.ARRIVING:
            where = words.Where(move=move.id, parent=move.parent)
            wanted = () if move.held is not None else (Ask(move.cluster, where),)
        case Phase.CLOSING:
            about = {"move": move.id, "cluster": move.cluster, "applications": applications}
            wanted = (
                Ask(move.parent, words.Complete(**about, old_name=move.old_name)),  # type: ignore[arg-type]
                Ask(move.old, words.Forget(**about, parent_name=move.parent_name, attach=move.again)),  # type: ignore[arg-type]
            )
        case Phase.UNDOING:
            release = words.Release(move=move.id, cluster=move.cluster)
            stay = Ask(move.cluster, words.Stay(move=move.id, parent=move.parent))
            first = move.told and stay.key not in move.agreed  # nobody else before it has answered
            wanted = (stay,) if first else (Ask(move.parent, release), Ask(move.old, release))
        case _:
            wanted = ()
    return tuple(ask for ask in wanted if ask.key not in move.agreed)


def _permissions(move: Move) -> tuple[Ask, ...]:
    between = tuple(Ask(uid, words.Check(move=move.id, cluster=move.cluster)) for uid in move.out[:-1] if uid != move.old)
    below = tuple(
        Ask(uid, words.Check(move=move.id, cluster=move.cluster, names=move.names)) for uid in move.into[:-1] if uid != move.parent
    )
    prepare = words.Prepare(move=move.id, cluster=move.cluster, name=move.name, labels=move.labels, height=move.height)
    return (*between, *below, Ask(move.old, words.Depart(move=move.id, cluster=move.cluster)), Ask(move.parent, prepare))


def go(move: Move) -> words.Go:
    return words.Go(move=move.id, parent=move.parent, parent_name=move.parent_name, addresses=move.addresses)


def rehearsal(move: Move) -> tuple[Ask, ...]:
    """What a dry run asks: everybody's word, and nothing is changed."""

    def rehearsed(question: Question) -> Question:
        return msgspec.structs.replace(question, dry_run=True) if isinstance(question, words.Prepare | words.Depart) else question

    asked = tuple(Ask(one.whom, rehearsed(one.question)) for one in _permissions(move))
    return (*asked, Ask(move.cluster, msgspec.structs.replace(go(move), dry_run=True)))


def heard(move: Move, ask: Ask, answer: Answer) -> Move:
    """The move after an answer. One to a question that is not asked any more changes nothing."""
    if ask.key not in {one.key for one in asks(move)}:
        return move
    match answer:
        case Gone():
            return _gone(move, answer)
        case No() | Stayed() if move.phase in (Phase.ASKING, Phase.GOING):
            return _undo(move, answer.reason, told=move.told and not isinstance(answer, Stayed))
        case NotYet() | No():
            return msgspec.structs.replace(move, reason=answer.reason)
        case Stayed() if move.phase is Phase.ARRIVING:
            return move  # seen under its new parent, and says that it is not there: asked again
        case Yes() | Stayed():
            return _agreed(move, ask, answer)
    return move


def _gone(move: Move, answer: Gone) -> Move:
    if move.phase not in (Phase.GOING, Phase.ARRIVING, Phase.UNDOING):
        return move
    return msgspec.structs.replace(
        move, phase=Phase.ARRIVING, held=answer.held, after=answer.after, agreed=(), reason="it was made before it could be called off"
        if move.phase is Phase.UNDOING else "",
    )  # fmt: skip


def _agreed(move: Move, ask: Ask, answer: Answer) -> Move:
    if isinstance(answer, Yes) and answer.addresses:
        move = msgspec.structs.replace(move, addresses=answer.addresses)
    move = msgspec.structs.replace(move, agreed=(*move.agreed, ask.key), reason=move.reason if move.phase is Phase.UNDOING else "")
    if asks(move):
        return move
    match move.phase:
        case Phase.ASKING:
            return msgspec.structs.replace(move, phase=Phase.GOING, agreed=(), tries=0)
        case Phase.CLOSING:
            return msgspec.structs.replace(move, phase=Phase.DONE, agreed=())
        case Phase.UNDOING:
            return msgspec.structs.replace(move, phase=Phase.UNDONE, agreed=())
    return move


def telling(move: Move) -> Move:
    """Before the cluster is told to go, for the first time: from now on only its own word calls the move off."""
    return msgspec.structs.replace(move, told=True)


def unanswered(move: Move, reason: str) -> Move:
    """Somebody who was asked is out of reach. Later than at first this changes only what it waits for, however often it comes."""
    if move.phase is not Phase.ASKING:
        return msgspec.structs.replace(move, reason=reason)
    move = msgspec.structs.replace(move, tries=move.tries + 1, reason=reason)
    return _undo(move, reason, told=False) if move.tries >= ASKING_TRIES else move


def seen(move: Move) -> Move:
    """The cluster is seen under its new parent."""
    if move.phase not in (Phase.GOING, Phase.UNDOING) or not move.told:
        return move
    return msgspec.structs.replace(move, phase=Phase.ARRIVING, agreed=())


def counted(move: Move, applications: tuple[str, ...]) -> Move:
    """In the commit that counts over what it took along."""
    return msgspec.structs.replace(move, phase=Phase.CLOSING, counted=applications, agreed=(), reason="")


def once_more(move: Move, attach: int, applications: tuple[str, ...]) -> Move:
    """One that is done, whose old parent lists the cluster again: it is told as before. ``applications``: what the cluster took along."""
    return msgspec.structs.replace(move, phase=Phase.CLOSING, agreed=(), counted=applications, reason="", again=attach)


def call_off(move: Move, reason: str) -> Move:
    """By a person; a move that is made goes on."""
    return _undo(move, reason, told=move.told) if move.phase in (Phase.ASKING, Phase.GOING) else move


def _undo(move: Move, reason: str, *, told: bool) -> Move:
    return msgspec.structs.replace(move, phase=Phase.UNDOING, reason=reason, told=told, agreed=(), tries=0)
