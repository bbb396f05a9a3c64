"""Who is who: keys, certificates, tokens, and the signed records that say where a cluster stands in the tree."""

from cluster_controller.identity.certificates import PeerCertificate, UserCertificate, peer_identity, user_identity
from cluster_controller.identity.contexts import presented_chain, verified_chain
from cluster_controller.identity.holder import Identity, create_root, load, renew_root, save
from cluster_controller.identity.users import Grant, User

__all__ = [
    "Grant",
    "Identity",
    "PeerCertificate",
    "User",
    "UserCertificate",
    "create_root",
    "load",
    "peer_identity",
    "presented_chain",
    "renew_root",
    "save",
    "user_identity",
    "verified_chain",
]
