"""Identities of a small tree, made in memory; the same within one test run, because keys cost time."""

import functools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cluster_controller.identity import Identity, create_root, keys
from cluster_controller.identity.authority import Issued
from cluster_controller.identity.certificates import request
from cluster_controller.identity.holder import member

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@functools.cache
def root(name: str = "root") -> Identity:
    with tempfile.TemporaryDirectory() as folder:
        return create_root(Path(folder) / "identity", name, NOW)


def issue(parent: Identity, name: str, now: datetime = NOW) -> tuple[Issued, keys.PrivateKey, keys.PrivateKey]:
    key, issuing_key = keys.generate(), keys.generate()
    issued = parent.issuing().issue(
        name=name, identity_request=request(key), issuing_request=request(issuing_key), home=parent.uid, now=now
    )
    return issued, key, issuing_key


def below(parent: Identity, name: str, now: datetime = NOW, *, leaf: bool = False) -> Identity:
    issued, key, issuing_key = issue(parent, name, now)
    if leaf:
        issued = Issued(identity=issued.identity)
    return member(
        name=name, key=key, issuing_key=issuing_key if issued.issuing else None, issued=issued, tree_ca=parent.tree_ca,
        parent_uid=parent.uid, parent_name=parent.name, parent_addresses=("127.0.0.1:1",), token_id="t", labels={}, now=now,
    )  # fmt: skip


@functools.cache
def region() -> Identity:
    return below(root(), "region-a")


@functools.cache
def edge() -> Identity:
    return below(region(), "edge-1")


LONG_AGO = NOW - timedelta(days=4000)
