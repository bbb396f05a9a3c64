"""The tree's key is changed under way: who has the new one and who has not understand each other, until the old one is dropped."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import Conflict, Forbidden, InvalidInput
from cluster_controller.identity import Identity, certificates, create_root, folder, keys, load, peer_identity, rotation
from cluster_controller.identity.holder import renew_root, save
from tests.identity.family import NOW, below
from tests.identity.test_contexts import handshake

BEGUN = "2026-11-21T12:00:00Z"


class Family:
    """root → region → edge, on disk as far as the root goes."""

    def __init__(self, path: Path) -> None:
        self.path = path / "identity"
        self.root = create_root(self.path, "root", NOW)
        self.region = below(self.root, "region-a")
        self.edge = below(self.region, "edge-1")

    def begin(self) -> rotation.Announcement:
        self.root = rotation.begin(self.path, self.root, NOW)
        return rotation.announcement(self.root, BEGUN)


def renewed_by(parent: Identity, child: Identity) -> Identity:
    request, issuing, fresh = child.requests()
    issued = parent.issuing().issue(name=child.name, identity_request=request, issuing_request=issuing, home=parent.uid, now=NOW)
    return child.renewed(issued, fresh if issued.issuing else None)


def meet(parent: Identity, child: Identity) -> None:
    """A handshake in which each believes the other; what is read of the chains is who they are."""
    of_child, of_parent, presented = asyncio.run(handshake(parent.server_context(), child.client_context()))
    assert peer_identity(of_child).uid == child.uid and peer_identity(of_child).issuers == child.peer.issuers
    assert peer_identity(of_parent).uid == parent.uid
    assert any(certificates.digest(certificates.parse(one)) == parent.tree_ca_digest for one in presented)  # for who joins by a token


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def test_each_mixture_of_before_and_after_understands_each_other(family: Family) -> None:
    before = family.root, family.region, family.edge
    said = family.begin()
    regions = [before[1], rotation.accept(before[1], said)]
    regions.append(renewed_by(family.root, regions[1]))
    assert [one.hangs_from_newest for one in regions[1:]] == [False, True]
    edges = [before[2], rotation.accept(before[2], said), renewed_by(regions[2], before[2])]  # the last: renewed before it heard why
    edges.append(renewed_by(regions[2], rotation.accept(before[2], said)))
    for region in regions:
        for root in (before[0], family.root):
            meet(root, region)
        for edge in edges:
            meet(region, edge)
    assert edges[3].authority_name == family.root.authority_name != before[0].authority_name


def test_after_the_end_only_the_new_key_counts(family: Family) -> None:
    old_edge = family.edge
    said = family.begin()
    region = rotation.closed(renewed_by(family.root, rotation.accept(family.region, said)))
    edge = renewed_by(region, rotation.accept(old_edge, said))
    meet(region, edge)  # it has not dropped the old one yet
    edge = rotation.closed(edge)
    family.root = rotation.finish(family.path, family.root)
    meet(family.root, region)
    meet(region, edge)
    assert len(edge.anchors) == len(load(family.path).anchors) == 1
    with pytest.raises((OSError, ConnectionError)):
        asyncio.run(handshake(region.server_context(), old_edge.client_context()))
    assert not (family.path / folder.NEXT_TREE_CA_KEY_FILE).exists()
    meet(renew_root(family.path, family.root, NOW), region)  # and the key of the new CA is where renewals look for it


def test_nothing_is_dropped_before_the_own_chain_is_new(family: Family) -> None:
    said = family.begin()
    trusting = rotation.accept(family.edge, said)
    assert rotation.accept(trusting, said) is trusting and rotation.closed(family.edge) is family.edge
    with pytest.raises(Conflict, match="renewed first"):
        rotation.closed(trusting)


def test_a_stranger_cannot_announce_a_key(family: Family, tmp_path: Path) -> None:
    stranger = Family(tmp_path / "other")
    theirs, ours = stranger.begin(), family.begin()
    for said in (
        theirs,
        rotation.Announcement(authority=theirs.authority, cross=ours.cross),
        rotation.Announcement(authority=ours.authority, cross=theirs.cross),
        rotation.Announcement(authority=ours.cross, cross=ours.cross),
        rotation.Announcement(authority="nonsense", cross=ours.cross),
    ):
        with pytest.raises(InvalidInput):
            rotation.accept(family.edge, said)


def test_one_rotation_at_a_time_and_at_the_root_alone(family: Family) -> None:
    with pytest.raises(Conflict, match="not being rotated"):
        rotation.announcement(family.root, BEGUN)
    family.begin()
    with pytest.raises(Conflict, match="already"):
        rotation.begin(family.path, family.root, NOW)
    with pytest.raises(Forbidden, match="not the root"):
        rotation.begin(family.path, family.region, NOW)


def test_a_root_renews_under_both_while_both_count(family: Family) -> None:
    old = family.region
    family.begin()
    again = renew_root(family.path, load(family.path), NOW)
    assert len(again.anchors) == 2 and again.issuing().signer.key != family.root.issuing().signer.key
    meet(again, old)  # who knows only the old CA finds its way


@pytest.mark.parametrize("step", ["key written", "identity written"])
def test_a_crash_at_any_point_is_made_good_by_the_same_step(family: Family, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise OSError("power lost")

    if step == "key written":
        with monkeypatch.context() as patched:
            patched.setattr("cluster_controller.identity.holder.save", crash)
            with pytest.raises(OSError, match="power lost"):
                rotation.begin(family.path, family.root, NOW)
        assert len(load(family.path).anchors) == 1
    region, said = family.region, family.begin()
    meet(family.root, region)
    if step == "identity written":
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", os.replace)
            patched.setattr("cluster_controller.identity.rotation._take_place", crash)
            with pytest.raises(OSError, match="power lost"):
                rotation.finish(family.path, family.root)
        family.root = renew_root(family.path, load(family.path), NOW)  # the newest key is found where it still stands
        following = family.begin()  # and is not mistaken for the next one
        assert following.authority != said.authority
        keys_there = {
            name: keys.from_pem(folder.read(family.path / name), name) for name in (folder.TREE_CA_KEY_FILE, folder.NEXT_TREE_CA_KEY_FILE)
        }
        assert keys_there[folder.TREE_CA_KEY_FILE].public_key() == family.root.anchors[0].public_key()
        assert keys_there[folder.NEXT_TREE_CA_KEY_FILE].public_key() == family.root.anchors[1].public_key()


def test_both_survive_on_disk(family: Family) -> None:
    said = family.begin()
    edge = rotation.accept(family.edge, said)
    save(family.path.parent / "edge", edge)
    found = load(family.path.parent / "edge")
    assert found.anchors == edge.anchors and rotation.accept(found, said) is found
