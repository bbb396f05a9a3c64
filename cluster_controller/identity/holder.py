"""This controller's identity: loaded once, immutable, replaced as a whole on renewal.

It is the only thing that touches private keys at run time. Nothing of it is logged, and its ``repr`` shows no key.
"""

import secrets
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import msgspec
from cryptography import x509

from cluster_controller import durable
from cluster_controller.errors import Forbidden, InvalidInput, NotFound
from cluster_controller.identity import certificates, contexts, keys
from cluster_controller.identity import folder as folders
from cluster_controller.identity.authority import DEFAULT_LIFETIMES, Authority, Issued, Lifetimes, UserCredential, issuing_for_root
from cluster_controller.identity.certificates import Signer
from cluster_controller.identity.folder import Saved
from cluster_controller.identity.users import Grant

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class Identity:
    """Who this controller is. ``certificate_chain`` is PEM, leaf first, up to but without the tree CA."""

    def __init__(self, saved: Saved, where: str, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> None:
        self.saved = saved
        self.lifetimes = lifetimes
        self._key = keys.from_pem(saved.identity_key.encode(), where)
        self._chain = certificates.parse_pem(saved.identity_chain.encode(), where)
        self.anchors = tuple(certificates.parse_pem(saved.tree_ca.encode(), where))  # two while the tree CA's key is being rotated
        self.tree_ca = self.anchors[0]
        self.site = Signer(certificates.parse_pem(saved.site_ca.encode(), where)[0], keys.from_pem(saved.site_key.encode(), where))
        self.uid = keys.uid_of(self._key.public_key())
        self.name = saved.name
        self.tree_ca_digest = certificates.digest(self.tree_ca)
        self.certificate_chain = tuple(certificates.pem(certificate) for certificate in self._chain)
        self.peer = certificates.peer_identity([certificates.der(certificate) for certificate in self._chain])
        self.authority = self._load_authority(where)
        if self.peer.uid != self.uid:
            raise InvalidInput(f"{where}: the certificate is not for the key beside it; restore the folder from a backup")
        self._verify(self._chain)

    def __repr__(self) -> str:
        return f"<Identity {self.name} {self.uid}>"

    def _load_authority(self, where: str) -> Authority | None:
        if not self.saved.issuing_key:
            return None
        chain = certificates.parse_pem(self.saved.issuing_chain.encode(), where)
        self._verify(chain)
        return Authority(Signer(chain[0], keys.from_pem(self.saved.issuing_key.encode(), where)), tuple(chain), self.lifetimes)

    def _verify(self, chain: Sequence[x509.Certificate]) -> None:
        certificates.anchored([certificates.der(one) for one in chain], self.anchors)

    @property
    def may_issue(self) -> bool:
        return self.authority is not None

    @property
    def is_root(self) -> bool:
        return not self.saved.parent_uid

    @property
    def parent_uid(self) -> str:
        """The parent that this cluster joined; "" for a root. The dialler accepts no other key."""
        return self.saved.parent_uid

    @property
    def path(self) -> tuple[str, ...]:
        """uids from the root down to this cluster, as the certificates say."""
        above = tuple(uid for uid in reversed(self.peer.issuers) if uid != self.uid)
        return (*above, self.uid)

    @property
    def not_before(self) -> datetime:
        return self.peer.not_before

    @property
    def not_after(self) -> datetime:
        return self.peer.not_after

    @cached_property
    def spki(self) -> bytes:
        return keys.spki(self._key.public_key())

    @cached_property
    def hangs_from_newest(self) -> bool:
        """Whether the own chain leads to the newest CA. Signatures are checked once: an identity never changes, it is replaced."""
        try:
            certificates.verify_chain(self._chain, self.anchors[-1])
        except InvalidInput:
            return False
        return True

    @cached_property
    def authority_name(self) -> str:
        """The CA that the own chain hangs from, for people: the first 16 digits of its digest."""
        return certificates.digest(self.anchors[-1] if self.hangs_from_newest else self.tree_ca)[:16]

    def sign(self, data: bytes, purpose: str = "banyan.data.v1") -> bytes:
        """A signature with the identity key; check it with `keys.verify` under the same purpose."""
        return keys.sign(self._key, purpose, data)

    def issuing(self) -> Authority:
        """Forbidden when this controller may not take children."""
        if self.authority is None:
            raise Forbidden(f"{self.name} may not take children: it was joined as a leaf, or stands at the tree's depth limit")
        return self.authority

    # --- TLS ---

    def server_context(self) -> ssl.SSLContext:
        """For the tunnel's port; asks for, does not demand, a client certificate of this tree. Made once per identity."""
        return self._server_context

    @cached_property
    def _server_context(self) -> ssl.SSLContext:
        return contexts.tunnel_server(keys.to_pem(self._key), b"".join(self.certificate_chain), certificates.pem(*self.anchors))

    def client_context(self) -> ssl.SSLContext:
        """For dialling the parent; presents the chain, demands a server of this tree. Made once per identity."""
        return self._client_context

    @cached_property
    def _client_context(self) -> ssl.SSLContext:
        return contexts.tunnel_client(keys.to_pem(self._key), b"".join(self.certificate_chain), certificates.pem(*self.anchors))

    # --- the API's side ---

    @property
    def api_anchors(self) -> bytes:
        """PEM for a kubeconfig's certificate-authority-data: with either of the two a client accepts this API's certificate.

        The site CA never expires while a site is cut off; the tree CA covers every controller of the tree.
        """
        return certificates.pem(*self.anchors, self.site.certificate)

    def api_context(self, hosts: Sequence[str], now: datetime) -> ssl.SSLContext:
        """For the front. ``hosts`` are names and addresses beside the loopback ones."""
        key, chain = self._api_certificate(hosts, now)
        return contexts.api_server(key, chain, self.api_anchors)

    def renew_api_context(self, context: ssl.SSLContext, hosts: Sequence[str], now: datetime) -> None:
        """Give a context in use a fresh certificate; connections that stand are not disturbed."""
        contexts.load(context, *self._api_certificate(hosts, now))

    def _api_certificate(self, hosts: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
        key = keys.generate()
        named = tuple(dict.fromkeys((*hosts, *LOCAL_HOSTS)))
        leaf = certificates.api_server(self.site, self.name, named, key.public_key(), now=now, lifetime=self.lifetimes.api)
        chain = [leaf]
        if self.authority is not None and self.authority.signer.path_length > 0:
            chain.append(
                certificates.cross_signed_site(self.authority.signer, self.site.certificate, now=now, lifetime=self.lifetimes.issuing)
            )
            chain.extend(self.authority.chain)
        return keys.to_pem(key), certificates.pem(*chain)

    def user_credential(self, name: str, grants: Sequence[Grant], now: datetime, lifetime: timedelta) -> UserCredential:
        """A client certificate for a person: under the tree when this controller may issue, else under its site CA."""
        return (self.authority or Authority(self.site, (), self.lifetimes)).user(name, grants, now, lifetime)

    def admin_credential(self, now: datetime) -> UserCredential:
        """The loopback admin of this site; it works with nobody above in reach, for as long as the site exists."""
        key = keys.generate()
        certificate = certificates.admin(self.site, self.uid, key.public_key(), now)
        return UserCredential(
            id="", certificate=certificates.pem(certificate), key=keys.to_pem(key), expires=certificate.not_valid_after_utc
        )

    # --- renewal ---

    def requests(self) -> tuple[bytes, bytes, keys.PrivateKey | None]:
        """What a renewal sends: the request for the identity key, and for a fresh issuing key where there is one now."""
        fresh = keys.generate() if self.may_issue else None
        return certificates.request(self._key), certificates.request(fresh) if fresh else b"", fresh

    def renewed(self, issued: Issued, issuing_key: keys.PrivateKey | None) -> "Identity":
        """The same cluster with fresh certificates; InvalidInput when they are not its own or of another tree."""
        return Identity(_with_certificates(self.saved, issued, issuing_key), "the renewal's answer", self.lifetimes)

    def under(
        self, issued: Issued, issuing_key: keys.PrivateKey | None, *, parent_uid: str, parent_name: str, parent_addresses: Sequence[str]
    ) -> "Identity":
        """The same cluster under another parent, which gave it these certificates. InvalidInput when they are not by that parent."""
        saved = _with_certificates(self.saved, issued, issuing_key)
        saved = msgspec.structs.replace(
            saved, parent_uid=parent_uid, parent_name=parent_name, parent_addresses=tuple(parent_addresses), token_id=""
        )
        fresh = Identity(saved, "the new parent's answer", self.lifetimes)
        if fresh.peer.home != parent_uid or fresh.uid != self.uid:
            raise InvalidInput(f"{parent_name} gave certificates that are not for a child of its own")
        return fresh


def _with_certificates(saved: Saved, issued: Issued, issuing_key: keys.PrivateKey | None) -> Saved:
    chain, issuing = _texts(issued.identity), _texts(issued.issuing)
    if not issuing:
        return msgspec.structs.replace(saved, identity_chain=chain, issuing_chain="", issuing_key="")
    if issuing_key is None:
        raise InvalidInput("an issuing certificate that nobody asked for")
    certificate = certificates.parse(issued.issuing[0])
    if certificate.public_key() != issuing_key.public_key():
        raise InvalidInput("the issuing certificate is not for the key that was asked for")
    return msgspec.structs.replace(saved, identity_chain=chain, issuing_chain=issuing, issuing_key=keys.to_pem(issuing_key).decode("ascii"))


def _texts(chain: Sequence[bytes]) -> str:
    return certificates.pem(*(certificates.parse(data) for data in chain)).decode("ascii")


def load(folder: Path, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> Identity:
    """The identity in ``DATA/identity``; NotFound when there is none, InvalidInput when it is damaged."""
    return Identity(folders.load(folder), str(folder / folders.IDENTITY_FILE), lifetimes)


def save(folder: Path, identity: Identity) -> None:
    """Durable when this returns; a crash leaves the old identity or the new one."""
    folders.save(folder, identity.saved)


def create_root(folder: Path, name: str, now: datetime, lifetimes: Lifetimes = DEFAULT_LIFETIMES) -> Identity:
    """Make a tree: its CA, and the root's identity under it. InvalidInput when an identity lives in ``folder`` already."""
    _refuse_existing(folder)
    tree_key, key = keys.generate(), keys.generate()
    tree = certificates.tree_ca(name, tree_key, now)
    uid = keys.uid_of(key.public_key())
    authority = issuing_for_root(tree, name, uid, now, lifetimes)
    leaf = certificates.identity(authority.signer, name, key.public_key(), "", now=now, lifetime=lifetimes.identity)
    site_key = keys.generate()
    saved = Saved(
        name=name,
        tree_ca=certificates.pem(tree.certificate).decode("ascii"),
        identity_key=keys.to_pem(key).decode("ascii"),
        identity_chain=certificates.pem(leaf, *authority.chain).decode("ascii"),
        site_key=keys.to_pem(site_key).decode("ascii"),
        site_ca=certificates.pem(certificates.site_ca(name, uid, site_key, now).certificate).decode("ascii"),
        issuing_key=keys.to_pem(authority.signer.key).decode("ascii"),
        issuing_chain=certificates.pem(*authority.chain).decode("ascii"),
        joined=now.isoformat(),
    )
    folders.create(folder)
    durable.write(folder / folders.TREE_CA_KEY_FILE, keys.to_pem(tree_key))
    folders.save(folder, saved)
    return load(folder, lifetimes)


def renew_root(folder: Path, identity: Identity, now: datetime) -> Identity:
    """Rotate the root's issuing key and renew its certificate; NotFound when the tree CA's key was taken away."""
    fresh = reissued_root(identity, tree_key(folder, identity), now)
    save(folder, fresh)
    return fresh


def tree_key(folder: Path, identity: Identity) -> keys.PrivateKey:
    """The key of the newest CA that this root signs with. NotFound, InvalidInput when it is not there."""
    wanted = identity.anchors[-1].public_key()
    for name in (folders.NEXT_TREE_CA_KEY_FILE, folders.TREE_CA_KEY_FILE):
        path = folder / name
        if path.exists():
            key = keys.from_pem(folders.read(path), str(path))
            if key.public_key() == wanted:
                return key
    path = folder / folders.TREE_CA_KEY_FILE
    folders.read(path)  # NotFound, with what to do
    raise InvalidInput(f"{path} is the key of another tree")


def reissued_root(identity: Identity, key: keys.PrivateKey, now: datetime, cross: Sequence[x509.Certificate] | None = None) -> Identity:
    """A root with a fresh issuing key under the CA of ``key``. ``cross``: instead of what its chain leads on with now."""
    newest = identity.anchors[-1]
    if cross is None:
        cross = [one for one in identity.issuing().chain if one.public_key() == newest.public_key()]
    authority = issuing_for_root(Signer(newest, key), identity.name, identity.uid, now, identity.lifetimes, cross=cross)
    request, _, _ = identity.requests()
    issued = authority.issue(name=identity.name, identity_request=request, issuing_request=b"", home="", now=now)
    chain = tuple(certificates.der(certificate) for certificate in authority.chain)
    return identity.renewed(Issued(identity=issued.identity, issuing=chain), authority.signer.key)


def member(
    *, name: str, key: keys.PrivateKey, issuing_key: keys.PrivateKey | None, issued: Issued, tree_ca: x509.Certificate,
    parent_uid: str, parent_name: str, parent_addresses: Sequence[str], token_id: str, labels: dict[str, str], now: datetime,
) -> Identity:  # fmt: skip
    """The identity of a cluster that has just joined; InvalidInput when what it was given does not fit together."""
    site_key, uid = keys.generate(), keys.uid_of(key.public_key())
    saved = Saved(
        name=name,
        tree_ca=certificates.pem(tree_ca).decode("ascii"),
        identity_key=keys.to_pem(key).decode("ascii"),
        identity_chain="",
        site_key=keys.to_pem(site_key).decode("ascii"),
        site_ca=certificates.pem(certificates.site_ca(name, uid, site_key, now).certificate).decode("ascii"),
        parent_uid=parent_uid,
        parent_name=parent_name,
        parent_addresses=tuple(parent_addresses),
        token_id=token_id,
        joined=now.isoformat(),
        labels=labels,
    )
    return Identity(_with_certificates(saved, issued, issuing_key), "the parent's answer")


def _refuse_existing(folder: Path) -> None:
    try:
        found = folders.load(folder)
    except NotFound:
        return
    raise InvalidInput(f"{folder.parent} already belongs to cluster {found.name}; use another data folder (--data)", "data")


def new_instance_id() -> str:
    """The random id of one start of a controller."""
    return secrets.token_hex(8)
