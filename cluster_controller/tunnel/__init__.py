"""Links and streams between a parent and its children, over WebSocket and mutual TLS.

`protocol` is pure and knows the frames; `wire` puts them on a socket; `link`, `stream` and `tunnel` are what the rest of the
controller uses. See ARCHITECTURE section 4 and docs/contributing/rooms.md.
"""

from cluster_controller.tunnel.dialer import ask
from cluster_controller.tunnel.handshake import Membership, Refused
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import (
    Alternate,
    AttachRecord,
    CloseCode,
    ControlMessage,
    Cursor,
    Held,
    Hello,
    JoinReply,
    JoinRequest,
    Lane,
    LinkLimits,
    LinkRole,
    Path,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
    ResetCode,
    Revocation,
    Revoked,
    Routes,
    Standing,
    Start,
    Welcome,
    Withdrawal,
)
from cluster_controller.tunnel.protocol.connection import LinkStats
from cluster_controller.tunnel.proxy import ProxyFailed
from cluster_controller.tunnel.router import Applied, Router, Verdict
from cluster_controller.tunnel.stream import Stream, StreamExhausted, StreamForbidden, StreamNotServed, StreamReset, StreamUnreachable
from cluster_controller.tunnel.tunnel import Tunnel

__all__ = [
    "Alternate",
    "Applied",
    "AttachRecord",
    "CloseCode",
    "ControlMessage",
    "Cursor",
    "Held",
    "Hello",
    "JoinReply",
    "JoinRequest",
    "Lane",
    "Limits",
    "Link",
    "LinkLimits",
    "LinkRole",
    "LinkStats",
    "Membership",
    "Path",
    "ProxyFailed",
    "Refusal",
    "RefusalCode",
    "Refused",
    "RenewReply",
    "RenewRequest",
    "ResetCode",
    "Revocation",
    "Revoked",
    "Router",
    "Routes",
    "Standing",
    "Start",
    "Stream",
    "StreamExhausted",
    "StreamForbidden",
    "StreamNotServed",
    "StreamReset",
    "StreamUnreachable",
    "Tunnel",
    "Verdict",
    "Welcome",
    "Withdrawal",
    "ask",
]
