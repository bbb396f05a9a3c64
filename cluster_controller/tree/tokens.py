"""Join tokens as objects: what is stored of one, and what is shown once. Pure but for the randomness of the secret."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import token
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.token import Flag
from cluster_controller.resources import kinds
from cluster_controller.resources.names import label_problem
from cluster_controller.tree.times import format_time


class NewToken(Struct, frozen=True, kw_only=True):
    """``stored`` goes into the JoinToken's status; ``text`` into the one answer to the create and nowhere else."""

    stored: dict[str, str]
    text: str


def new_token(identity: Identity, name: str, spec: kinds.JoinTokenSpec, addresses: Sequence[str], now: datetime) -> NewToken:
    """A token to join this controller, consumed in this store. ``name`` of the object is the token's id.

    InvalidInput when another parent is named, or nothing listens for children; Forbidden when this controller may take none.
    """
    identity.issuing()
    if spec.parent and spec.parent not in (identity.name, identity.uid):
        raise InvalidInput(
            f"a token to join {spec.parent} is made and consumed by {spec.parent} itself: `banyan --at {spec.parent} token create`",
            "spec.parent",
        )
    for field, value in (("metadata.name", name), ("spec.clusterName", spec.cluster_name), ("spec.replace", spec.replace)):
        problem = label_problem(value) if value or field == "metadata.name" else ""
        if problem:
            raise InvalidInput(problem, field)
    if not addresses:
        raise InvalidInput(f"{identity.name} listens for no children; set tunnel_listen and start it again", "tunnel_listen")
    flags = (Flag.APPROVE if spec.approve else Flag.NONE) | (Flag.REPLACE if spec.replace else Flag.NONE)
    made = token.new(
        parent=identity.uid,
        parent_name=identity.name,
        addresses=tuple(addresses)[: token.MAX_ADDRESSES],
        tree_ca_digest=identity.tree_ca_digest,
        identifier=name,
        flags=flags,
    )
    stored = {
        "phase": "Open",
        "parent": identity.name,
        "digest": token.hash_secret(made.secret),
        "expires": format_time(now + timedelta(seconds=spec.expires_after_seconds)),
    }
    return NewToken(stored=stored, text=token.encode(made))
