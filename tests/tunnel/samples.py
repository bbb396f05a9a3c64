"""One full example of every message, with every field set: what the fixtures are recorded from.

`python -m tests.tunnel.samples` writes a fixture for each example that has none yet. A recorded fixture is never rewritten: it is
what an older version sent, and every later one must still read it. When a message gains a field, add an example under a new
name instead of changing one.
"""

import sys
from pathlib import Path

from msgspec import Struct

from cluster_controller.tunnel import messages as m
from cluster_controller.tunnel.protocol import codec

FIXTURES = Path(__file__).parent / "fixtures"

RECORD = m.AttachRecord(
    uid="aaaaaaaaaaaaaaaaaaaaaaaaaa", parent_uid="bbbbbbbbbbbbbbbbbbbbbbbbbb", attach=7, nonce=b"nonce", public_key=b"spki",
    signature=b"signature", name="edge-1",
)  # fmt: skip
STANDING = m.Standing(
    uid="aaaaaaaaaaaaaaaaaaaaaaaaaa",
    parents=(
        m.Alternate(
            uid="bbbbbbbbbbbbbbbbbbbbbbbbbb", name="region-a", addresses=("region-a.example:10000", "[::1]:10000"), relation="home"
        ),
    ),
    serial=3, signature=b"signature", chain=(b"leaf", b"issuer"),
)  # fmt: skip
REFUSAL = m.Refusal(code=m.RefusalCode.NAME_TAKEN, reason="edge-1 is taken; choose another name", retry_after=2.5)
CURSOR = m.Cursor(space="desired", history="h1", revision=12345678901, digest=b"\x00\x01")
LIMITS = m.LinkLimits(initial_window=65536, max_streams=1024)

CONTROL: dict[str, m.ControlMessage] = {
    "hello": m.Hello(
        versions=(1,), uid=RECORD.uid, name="edge-1", starts=(m.Start(number=4, id="s4"), m.Start(number=5, id="s5")),
        attach=RECORD, cursors=(CURSOR,), features=("zstd",), role=m.LinkRole.MAIN, software="banyan 0.1.0",
        addresses=("edge-1.example:10000",), limits=LIMITS, unix_time=1767225600.5, standing=STANDING,
    ),
    "welcome": m.Welcome(
        version=1, uid=RECORD.parent_uid, name="region-a", path=("r", "b"), path_names=("root", "region-a"), heartbeat_seconds=5.0,
        dead_after_seconds=15.0, limits=LIMITS, standing=STANDING, cursors=(CURSOR,), features=("zstd",), start_acknowledged=5,
        software="banyan 0.1.0", unix_time=1767225600.5, top="r", report_anew=True,
    ),
    "refusal": REFUSAL,
    "join_request": m.JoinRequest(
        token="banyan1.x", csr=b"csr", name="edge-1", labels={"tier": "edge", "site": "ulm"}, may_have_children=True,
        replace="edge-0", issuing_csr=b"issuing", unix_time=1767225600.5,
    ),
    "join_reply": m.JoinReply(
        certificate_chain=(b"leaf", b"issuer"), tree_ca=b"ca", issuing_chain=(b"issuing",), parent_uid=RECORD.parent_uid,
        parent_name="region-a", standing=STANDING, name="edge-1", provisional=True, unix_time=1767225600.5,
    ),
    "join_reply_refused": m.JoinReply(refusal=REFUSAL),
    "renew_request": m.RenewRequest(csr=b"csr", issuing_csr=b"issuing", unix_time=1767225600.5),
    "renew_reply": m.RenewReply(
        refusal=REFUSAL, certificate_chain=(b"leaf",), issuing_chain=(b"issuing",), standing=STANDING, unix_time=1767225600.5,
    ),
    "routes": m.Routes(announce=(RECORD,), withdraw=(m.Withdrawal(uid="c", attach=9),), full=True),
    "revoked": m.Revoked(revocations=(m.Revocation(uid="c", serial="0a", reason="lost", signature=b"s", subject="cluster"),)),
    "held": m.Held(uid=RECORD.uid, reason="two instances", instance="s5"),
    "path": m.Path(uids=("r", "b"), names=("root", "region-a"), top="b"),
    "standing": STANDING,
}  # fmt: skip
PAYLOADS: dict[str, m.Heartbeat | m.Open | m.Reset | m.GoAway] = {
    "heartbeat_question": m.Heartbeat(id=5),
    "heartbeat_answer": m.Heartbeat(answer=5),
    "open": m.Open(destination=("b", "c"), service="sync", metadata=b"{}", source=("b", "r"), lane=m.Lane.SYNC),
    "reset": m.Reset(code=m.ResetCode.UNREACHABLE, reason="no link", hop="b"),
    "go_away": m.GoAway(code=1001, reason="upgrade", reconnect_after=1.5),
}


def encode(sample: Struct) -> bytes:
    if isinstance(sample, m.Heartbeat | m.Open | m.Reset | m.GoAway):
        return codec.encode_payload(sample)
    return codec.encode_control(sample)  # type: ignore[arg-type]


def record() -> list[str]:
    """Write the fixtures that are missing; their names."""
    FIXTURES.mkdir(exist_ok=True)
    written = []
    for name, sample in {**CONTROL, **PAYLOADS}.items():
        path = FIXTURES / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(sample))
            written.append(path.name)
    return written


if __name__ == "__main__":
    sys.stdout.write("\n".join(record()) + "\n")
