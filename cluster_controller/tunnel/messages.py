"""Control messages as the rest of the controller sees them: plain structs, no protobuf.

Every field has a default, as on the wire, so that an older peer's message is readable. The codec in `protocol/codec` maps
these structs field by field to `banyan.tunnel.v1`; a test walks both definitions and fails when they differ.
Units: seconds, bytes. Nothing here is trusted because it was decoded: signatures are judged by `cluster_controller.identity`.
"""

from enum import IntEnum

from msgspec import Struct, field


class Lane(IntEnum):
    """Which traffic goes first on a link; the three below CONTROL each keep a guaranteed share."""

    CONTROL = 1
    INTERACTIVE = 2
    SYNC = 3
    BULK = 4


class LinkRole(IntEnum):
    UNSPECIFIED = 0
    MAIN = 1
    BULK = 2


class RefusalCode(IntEnum):
    UNSPECIFIED = 0
    VERSION = 1
    FORBIDDEN = 2
    EXPIRED = 3
    REVOKED = 4
    HELD = 5
    REPLAYED = 6
    BUSY = 7
    NOT_MY_CHILD = 8
    LOOP = 9
    TOKEN_INVALID = 10
    TOKEN_USED = 11
    TOKEN_EXPIRED = 12
    NAME_TAKEN = 13
    PENDING_APPROVAL = 14
    INVALID = 15
    OUT_OF_REACH = 16  # no home ancestor of the child is in reach from here


class ResetCode(IntEnum):
    """Why a stream ended before its time."""

    UNSPECIFIED = 0
    CANCELLED = 1
    REFUSED = 2
    UNREACHABLE = 3
    FORBIDDEN = 4
    NO_SERVICE = 5
    EXHAUSTED = 6
    LINK_LOST = 7
    INTERNAL = 8
    LOOP = 9
    GOING_AWAY = 10


class CloseCode(IntEnum):
    """WebSocket close codes of a link; 4000 and above are this protocol's own (RFC 6455, section 7.4.2)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL = 1002
    TOO_BIG = 1009
    INTERNAL = 1011
    HANDSHAKE_TIMEOUT = 4001
    REFUSED = 4002
    SUPERSEDED = 4003
    HELD = 4004
    REVOKED = 4005
    LOOP = 4006
    FLOW_CONTROL = 4007
    SILENT = 4008
    OVERLOADED = 4009
    FORBIDDEN = 4010
    BUSY = 4011
    OUT_OF_REACH = 4013  # the adopter has lost every home ancestor of the adopted child
    PROXY = 4012  # said to nobody: how this side knows that it was the proxy that did not help


class AttachRecord(Struct, frozen=True, kw_only=True):
    """What a child signs at each connection: it is under ``parent_uid``, for the ``attach``-th time."""

    uid: str = ""
    parent_uid: str = ""
    attach: int = 0
    nonce: bytes = b""
    public_key: bytes = b""  # SubjectPublicKeyInfo, DER; its hash is the uid
    signature: bytes = b""
    name: str = ""  # for people only; not signed


class Start(Struct, frozen=True, kw_only=True):
    number: int = 0
    id: str = ""


class Cursor(Struct, frozen=True, kw_only=True):
    """How far one replicated space has come."""

    space: str = ""
    history: str = ""
    revision: int = 0
    digest: bytes = b""


class LinkLimits(Struct, frozen=True, kw_only=True):
    """What one side lets the other do on a link."""

    initial_window: int = 0  # bytes of frames, headers included, that a new stream may carry before the first credit
    max_streams: int = 0  # that the other side may have open at once


class Hello(Struct, frozen=True, kw_only=True):
    """The first message of a child."""

    versions: tuple[int, ...] = ()
    uid: str = ""
    name: str = ""
    starts: tuple[Start, ...] = ()  # all since the last one that a parent acknowledged, oldest first
    attach: AttachRecord | None = None
    cursors: tuple[Cursor, ...] = ()
    features: tuple[str, ...] = ()
    role: LinkRole = LinkRole.UNSPECIFIED
    software: str = ""
    addresses: tuple[str, ...] = ()  # where this cluster's own children can reach it
    limits: LinkLimits | None = None  # filled in by the tunnel
    unix_time: float = 0.0  # compared only to warn people
    standing: "Standing | None" = None  # shown to any parent but the home parent


class Alternate(Struct, frozen=True, kw_only=True):
    uid: str = ""
    name: str = ""
    addresses: tuple[str, ...] = ()
    relation: str = ""  # what it is to the child; see `identity.standing`; not signed


class Standing(Struct, frozen=True, kw_only=True):
    """What a child's parent signed for it: the parents that may take it in."""

    uid: str = ""
    parents: tuple[Alternate, ...] = ()
    serial: int = 0
    signature: bytes = b""
    chain: tuple[bytes, ...] = ()  # certificates (DER) of the signer, leaf first


class Welcome(Struct, frozen=True, kw_only=True):
    """The parent's answer to Hello. ``version``, ``limits`` and the two times are filled in by the tunnel when left 0."""

    version: int = 0
    uid: str = ""
    name: str = ""
    path: tuple[str, ...] = ()  # uids from the root down to this parent, the parent last
    path_names: tuple[str, ...] = ()
    heartbeat_seconds: float = 0.0
    dead_after_seconds: float = 0.0
    limits: LinkLimits | None = None
    standing: Standing | None = None
    cursors: tuple[Cursor, ...] = ()
    features: tuple[str, ...] = ()
    start_acknowledged: int = 0
    software: str = ""
    unix_time: float = 0.0
    top: str = ""  # the highest of `path` that is linked through to this parent now; "": the first
    report_anew: bool = False  # what the parent holds may be a copy's, or newer than this data folder: report everything once more


class Refusal(Struct, frozen=True, kw_only=True):
    """Why something is not granted, and what to do next."""

    code: RefusalCode = RefusalCode.UNSPECIFIED
    reason: str = ""
    retry_after: float = 0.0  # seconds; 0: waiting does not help


class JoinRequest(Struct, frozen=True, kw_only=True):
    token: str = ""
    csr: bytes = b""  # PKCS #10, DER
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    may_have_children: bool = False
    replace: str = ""
    issuing_csr: bytes = b""
    unix_time: float = 0.0


class JoinReply(Struct, frozen=True, kw_only=True):
    refusal: Refusal | None = None
    certificate_chain: tuple[bytes, ...] = ()  # PEM, leaf first, up to but without the tree CA
    tree_ca: bytes = b""
    issuing_chain: tuple[bytes, ...] = ()
    parent_uid: str = ""
    parent_name: str = ""
    standing: Standing | None = None
    name: str = ""
    provisional: bool = False
    unix_time: float = 0.0


class RenewRequest(Struct, frozen=True, kw_only=True):
    csr: bytes = b""
    issuing_csr: bytes = b""
    unix_time: float = 0.0


class RenewReply(Struct, frozen=True, kw_only=True):
    refusal: Refusal | None = None
    certificate_chain: tuple[bytes, ...] = ()
    issuing_chain: tuple[bytes, ...] = ()
    standing: Standing | None = None
    unix_time: float = 0.0


class Withdrawal(Struct, frozen=True, kw_only=True):
    uid: str = ""
    attach: int = 0  # the attach that ended; a withdrawal of an older one is ignored


class Routes(Struct, frozen=True, kw_only=True):
    """Changes of the sender's subtree, parents before their children."""

    announce: tuple[AttachRecord, ...] = ()
    withdraw: tuple[Withdrawal, ...] = ()
    full: bool = False  # replaces all that was announced on this link


class Revocation(Struct, frozen=True, kw_only=True):
    uid: str = ""
    serial: str = ""
    reason: str = ""
    signature: bytes = b""
    subject: str = ""  # "cluster" or "user"


class Revoked(Struct, frozen=True, kw_only=True):
    revocations: tuple[Revocation, ...] = ()


class Held(Struct, frozen=True, kw_only=True):
    """Two instances speak for one uid; both are told."""

    uid: str = ""
    reason: str = ""
    instance: str = ""  # the instance that keeps the link


class Path(Struct, frozen=True, kw_only=True):
    """The parent's path has changed, or how far up it is whole; as in `Welcome`."""

    uids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    top: str = ""


class Heartbeat(Struct, frozen=True, kw_only=True):
    """Exactly one is not 0."""

    id: int = 0
    answer: int = 0


class Open(Struct, frozen=True, kw_only=True):
    destination: tuple[str, ...] = ()  # uids, the last one is where the stream ends
    service: str = ""
    metadata: bytes = b""
    source: tuple[str, ...] = ()  # uids of the hops back to the opener, nearest first
    lane: Lane = Lane.INTERACTIVE


class Reset(Struct, frozen=True, kw_only=True):
    code: ResetCode = ResetCode.UNSPECIFIED
    reason: str = ""
    hop: str = ""  # uid of the hop that ended the stream


class GoAway(Struct, frozen=True, kw_only=True):
    code: int = 0
    reason: str = ""
    reconnect_after: float = 0.0  # seconds


ControlMessage = (
    Hello | Welcome | Refusal | JoinRequest | JoinReply | RenewRequest | RenewReply | Routes | Revoked | Held | Path
    | Standing
)  # fmt: skip
