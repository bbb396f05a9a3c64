"""The key at the top of a tree is changed while the tree works: for a while both count.

The root makes a new CA and signs its key with the present one. Chains issued from then on end in that signature, so whoever knows
only the present CA verifies them too, and whoever knows both takes the shorter way. The new CA travels down the tree as an
`Announcement`, which proves itself by the same signature, so no relay has to be believed. When everybody has certificates under the
new CA, the old one is dropped.

Invariants: an identity trusts the new CA before it shows a chain that only leads there; it drops the old one only when its own chain
leads to the new one. Each step is one rename of ``identity.json``, and may be repeated after a crash at any point.
"""

from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from cluster_controller import durable
from cluster_controller.errors import Conflict, Forbidden, InvalidInput
from cluster_controller.identity import certificates, folder, holder, keys
from cluster_controller.identity.certificates import Signer
from cluster_controller.identity.holder import Identity


class Announcement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the root says of its CAs. Certificates are PEM."""

    authority: str  # the new CA, signed by itself
    cross: str  # its key, signed by the CA before it
    begun: str = ""  # when, for people
    closed: bool = False  # the CA before it counts no more


def begin(path: Path, identity: Identity, now: datetime) -> Identity:
    """At the root: a new CA beside the present one, and an issuing certificate under it. ``path``: DATA/identity.

    Conflict while a rotation is under way, Forbidden for a controller that is no root, NotFound when the present CA's key is not there.
    """
    if not identity.is_root:
        raise Forbidden(f"{identity.name} is not the root of its tree; the tree's key is rotated there")
    if len(identity.anchors) > 1:
        raise Conflict(
            "the tree's key is being rotated already; `banyan rotate status` says who is missing, `banyan rotate finish` ends it"
        )
    old = Signer(identity.tree_ca, holder.tree_key(path, identity))
    key = _next_key(path)
    if key.public_key() == old.key.public_key():  # the rotation before was cut off just before its end
        _take_place(path)
        key = _next_key(path)
    fresh = certificates.tree_ca(identity.name, key, now)
    cross = certificates.cross_signed_tree(old, fresh.certificate, now)
    both = _trusting(identity, certificates.pem(identity.tree_ca, fresh.certificate))
    done = holder.reissued_root(both, key, now, [cross])
    holder.save(path, done)
    return done


def _next_key(path: Path) -> keys.PrivateKey:
    """On disk before anything is signed with it; one that a rotation left which was cut off is taken again."""
    file = path / folder.NEXT_TREE_CA_KEY_FILE
    if file.exists():
        return keys.from_pem(folder.read(file), str(file))
    key = keys.generate()
    durable.write(file, keys.to_pem(key))
    return key


def announcement(identity: Identity, begun: str) -> Announcement:
    """Of a root that has two CAs; Conflict when it has one."""
    if len(identity.anchors) < 2:
        raise Conflict("the tree's key is not being rotated")
    newest = identity.anchors[-1]
    cross = next(one for one in identity.issuing().chain if one.public_key() == newest.public_key())
    return Announcement(authority=certificates.pem(newest).decode("ascii"), cross=certificates.pem(cross).decode("ascii"), begun=begun)


def accept(identity: Identity, said: Announcement) -> Identity:
    """``identity`` with the announced CA among those that it trusts; itself when it does already. InvalidInput for what proves nothing."""
    fresh = certificates.parse_pem(said.authority.encode(), "the announced CA")[0]
    if any(certificates.der(one) == certificates.der(fresh) for one in identity.anchors):
        return identity
    cross = certificates.parse_pem(said.cross.encode(), "the announced CA")[0]
    if cross.public_key() != fresh.public_key() or cross.subject != fresh.subject:
        raise InvalidInput("the announced CA is not the one that the present CA has signed")
    certificates.verify_chain([fresh], fresh)
    certificates.verify_chain([cross], identity.tree_ca)
    return _trusting(identity, certificates.pem(identity.tree_ca, fresh))


def closed(identity: Identity) -> Identity:
    """``identity`` trusting the newest CA alone; Conflict while its own certificates hang from the one before."""
    if len(identity.anchors) < 2:
        return identity
    if not identity.hangs_from_newest:
        raise Conflict(f"the certificates of {identity.name} hang from the tree's old key; they are renewed first")
    newest = identity.anchors[-1]

    def without_cross(chain: str) -> str:
        found = certificates.parse_pem(chain.encode(), identity.name) if chain else []
        return certificates.pem(*(one for one in found if one.public_key() != newest.public_key())).decode("ascii")

    saved = msgspec.structs.replace(
        identity.saved,
        tree_ca=certificates.pem(newest).decode("ascii"),
        identity_chain=without_cross(identity.saved.identity_chain),
        issuing_chain=without_cross(identity.saved.issuing_chain),
    )
    return Identity(saved, identity.name, identity.lifetimes)


def finish(path: Path, identity: Identity) -> Identity:
    """At the root: the old CA counts no more, and its key is gone."""
    done = closed(identity)
    holder.save(path, done)
    _take_place(path)
    return done


def _take_place(path: Path) -> None:
    following = path / folder.NEXT_TREE_CA_KEY_FILE
    if following.exists():
        following.replace(path / folder.TREE_CA_KEY_FILE)
        durable.sync_folder(path)


def _trusting(identity: Identity, anchors: bytes) -> Identity:
    return Identity(msgspec.structs.replace(identity.saved, tree_ca=anchors.decode("ascii")), identity.name, identity.lifetimes)
