"""What a chain is believed for, and what not."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from cluster_controller.errors import Forbidden, InvalidInput
from cluster_controller.identity import Identity, certificates, keys, peer_identity, user_identity
from cluster_controller.identity.authority import Issued
from cluster_controller.identity.certificates import Role, Signer
from cluster_controller.identity.users import Grant
from tests.identity.family import LONG_AGO, NOW, below, edge, issue, region, root


def ders(identity: Identity) -> tuple[bytes, ...]:
    return identity.peer.chain


def parsed(chain: tuple[bytes, ...]) -> list[x509.Certificate]:
    return [certificates.parse(one) for one in chain]


def test_a_uid_is_the_hash_of_the_key() -> None:
    for one in (root(), region(), edge()):
        assert one.uid == keys.uid_of_spki(one.spki) and keys.is_uid(one.uid)
    assert not keys.is_uid(edge().uid.upper()) and not keys.is_uid(edge().uid[:-1])


def test_a_chain_tells_name_issuers_home_and_dates() -> None:
    peer = peer_identity(ders(edge()))
    assert (peer.uid, peer.name, peer.home) == (edge().uid, "edge-1", region().uid)
    assert peer.issuers == (region().uid, root().uid)
    assert edge().path == (root().uid, region().uid, edge().uid)
    assert peer.not_before < NOW < peer.not_after
    assert root().path == (root().uid,) and root().peer.home == ""


def test_expired_chains_are_still_chains() -> None:
    old = below(region(), "old", LONG_AGO)
    certificates.verify_chain(parsed(ders(old)), root().tree_ca)
    assert old.not_after < NOW


def test_another_tree_is_not_this_tree() -> None:
    with pytest.raises(InvalidInput, match="not signed by"):
        certificates.verify_chain(parsed(ders(below(root("other"), "x"))), root().tree_ca)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chain: (),
        lambda chain: chain[:1],
        lambda chain: (chain[0], *reversed(chain[1:])),
        lambda chain: (chain[0], chain[0], *chain[1:]),
        lambda chain: chain[:1] + chain[2:],
        lambda chain: chain * 5,
    ],
)
def test_a_chain_with_a_link_missing_doubled_or_swapped_is_refused(spoil: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> None:
    with pytest.raises(InvalidInput):
        certificates.verify_chain(parsed(spoil(ders(edge()))), root().tree_ca)


def test_a_leaf_cannot_sign() -> None:
    """An identity certificate is no authority, whatever its holder signs with its key."""
    forger = Signer(certificates.parse(ders(edge())[0]), edge()._key)
    forged = certificates.identity(forger, "forged", keys.generate().public_key(), "", now=NOW, lifetime=timedelta(days=1))
    with pytest.raises(InvalidInput, match="may not sign"):
        certificates.verify_chain([forged, *parsed(ders(edge()))], root().tree_ca)


def test_the_path_is_bounded() -> None:
    levels, one = 0, root()
    while one.may_issue:
        one, levels = below(one, f"level-{levels}"), levels + 1
    assert levels == certificates.MAX_PATH_LENGTH + 1
    with pytest.raises(Forbidden, match="depth limit"):
        one.issuing()


def test_an_issuer_beyond_its_path_is_refused() -> None:
    """Whoever ignores the bound and signs another authority gains nothing."""
    one = root()
    while one.issuing().signer.path_length > 0:
        one = below(one, "down")
    last = one.issuing()
    stretched = Signer(last.signer.certificate, last.signer.key)
    key = keys.generate()
    builder = certificates._authority(
        certificates._builder(certificates._name("issuing", "x"), key.public_key(), NOW, timedelta(days=1)), 0
    )
    extra = Signer(stretched.sign(builder), key)
    forged = certificates.identity(extra, "forged", keys.generate().public_key(), "", now=NOW, lifetime=timedelta(days=1))
    with pytest.raises(InvalidInput, match="may not sign"):
        certificates.verify_chain([forged, extra.certificate, *last.chain], root().tree_ca)


def test_no_issuer_can_give_away_anothers_uid() -> None:
    """The uid in the certificate must be that of the key: region-a cannot make a certificate for edge-1's uid and its own key."""
    authority, key = region().issuing(), keys.generate()
    builder = certificates._end_entity(
        certificates._builder(certificates._name("cluster", "edge-1"), key.public_key(), NOW, timedelta(days=1)),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    forged = authority.signer.sign(certificates._names(builder, certificates.uri(Role.CLUSTER, edge().uid)))
    chain = tuple(certificates.der(one) for one in (forged, *authority.chain))
    certificates.verify_chain(parsed(chain), root().tree_ca)
    with pytest.raises(InvalidInput, match="not that of a cluster"):
        peer_identity(chain)


def test_people_are_no_clusters_and_clusters_are_no_people() -> None:
    made = region().user_credential("alice", (Grant("edit", "shop"),), NOW, timedelta(days=1))
    chain = tuple(certificates.der(one) for one in certificates.parse_pem(made.certificate, "test"))
    shown = user_identity(chain)
    assert (shown.name, shown.id, shown.grants, shown.admin) == ("alice", made.id, (Grant("edit", "shop"),), False)
    assert shown.issuers == (region().uid, root().uid)
    with pytest.raises(InvalidInput, match="not that of a cluster"):
        peer_identity(chain)
    with pytest.raises(InvalidInput, match="not that of a user"):
        user_identity(ders(edge()))


def test_what_is_read_from_a_chain_is_the_way_that_was_verified() -> None:
    """TLS may find its way through a chain that holds other certificates too; those must not be believed."""
    made = region().user_credential("alice", (), NOW, timedelta(days=1))
    mine = [certificates.der(one) for one in certificates.parse_pem(made.certificate, "test")]
    stranger = below(root(), "region-b").issuing().chain
    mixed = (mine[0], certificates.der(stranger[0]), *mine[1:])
    with pytest.raises(InvalidInput):
        certificates.anchored(mixed, (root().tree_ca,))
    assert certificates.anchored(mine, (edge().site.certificate, root().tree_ca))[-1] == certificates.der(root().tree_ca)
    assert certificates.anchored((*mine, certificates.der(root().tree_ca)), (root().tree_ca,))[:-1] == tuple(mine)
    with pytest.raises(InvalidInput):
        certificates.anchored((), (root().tree_ca,))


def test_a_request_proves_its_key() -> None:
    key = keys.generate()
    data = certificates.request(key)
    assert keys.spki(certificates.requested_key(data)) == keys.spki(key.public_key())
    for broken in (b"", b"x" * 100, data[:-1], data[:-3] + bytes(3), b"x" * 10_000):
        with pytest.raises(InvalidInput):
            certificates.requested_key(broken)


def test_identity_and_issuing_key_must_differ() -> None:
    data = certificates.request(keys.generate())
    with pytest.raises(Forbidden, match="two keys"):
        region().issuing().issue(name="x", identity_request=data, issuing_request=data, home=region().uid, now=NOW)


def test_an_answer_for_another_key_is_refused() -> None:
    issued, _, _ = issue(region(), "edge-1")
    with pytest.raises(InvalidInput, match="not for the key"):
        edge().renewed(Issued(identity=issued.identity), None)


def test_a_renewal_keeps_the_uid_and_rotates_the_issuing_key() -> None:
    request, issuing_request, fresh = region().requests()
    issued = (
        root()
        .issuing()
        .issue(name="region-a", identity_request=request, issuing_request=issuing_request, home=root().uid, now=NOW + timedelta(days=60))
    )
    renewed = region().renewed(issued, fresh)
    assert renewed.uid == region().uid and renewed.not_after > region().not_after
    assert renewed.issuing().signer.certificate.public_key() != region().issuing().signer.certificate.public_key()
    # What the old issuing key has signed stays good: nobody is cut off by a rotation.
    certificates.verify_chain(parsed(ders(edge())), renewed.tree_ca)


def test_foreign_bytes_are_no_certificates() -> None:
    for data in (b"", b"x" * 100, b"x" * 100_000):
        with pytest.raises(InvalidInput):
            certificates.parse(data)
    with pytest.raises(InvalidInput):
        certificates.parse_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "test")
    with pytest.raises(InvalidInput):
        peer_identity(())


def test_api_names_must_be_names() -> None:
    with pytest.raises(InvalidInput, match="neither a host name nor"):
        edge().api_context(["a..b"], NOW)


def test_no_key_is_shown() -> None:
    assert "PRIVATE" not in repr(edge()) and repr(edge()) == f"<Identity edge-1 {edge().uid}>"
