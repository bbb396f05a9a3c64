"""Keys: only one kind is one, wherever it enters; what is none is named; and one that was put to rest comes back."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import attach, certificates, keys, peer_identity
from tests.identity.family import edge, region, root

OTHERS = [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]


@pytest.mark.parametrize("other", OTHERS, ids=["P-384", "RSA"])
def test_keys_of_another_kind_are_refused_wherever_they_enter(other: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    pem = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    der = other.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other, hashes.SHA256())
    with pytest.raises(InvalidInput, match=r"identity.json holds a key of another kind"):
        keys.from_pem(pem, "identity.json")
    with pytest.raises(InvalidInput, match="another kind"):
        keys.public_from_spki(der)
    with pytest.raises(InvalidInput, match="another kind"):
        certificates.requested_key(request.public_bytes(serialization.Encoding.DER))
    genuine = attach.sign(keys.uid_of_spki(der), region().uid, 1, der, edge().sign)
    with pytest.raises(InvalidInput, match=r"another kind|out of bounds"):  # an RSA key is too long to be looked at
        attach.verify(genuine)


def test_what_is_no_key_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"^identity\.json holds no readable private key"):
        keys.from_pem(b"nonsense", "identity.json")
    with pytest.raises(InvalidInput):
        keys.public_from_spki(b"nonsense")


def test_a_key_goes_to_rest_and_comes_back() -> None:
    key = keys.generate()
    again = keys.from_pem(keys.to_pem(key), "test")
    assert keys.uid_of(again.public_key()) == keys.uid_of(key.public_key())
    assert keys.verify(key.public_key(), "p", b"data", keys.sign(again, "p", b"data"))
    assert not keys.verify(key.public_key(), "q", b"data", keys.sign(again, "p", b"data"))
    assert not keys.verify(key.public_key(), "p", b"datb", keys.sign(again, "p", b"data"))


def test_certificates_without_our_marks_are_nobodys() -> None:
    authority = root().tree_ca
    assert certificates.roles(authority) == {} and certificates.path_length(certificates.parse(edge().peer.chain[0])) == -1
    with pytest.raises(InvalidInput, match="not that of a cluster"):
        peer_identity([certificates.der(authority)])
    with pytest.raises(InvalidInput, match="names no issuing cluster"):
        peer_identity(edge().peer.chain[:1])
