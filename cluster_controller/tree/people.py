"""People and programs that may ask this controller: their records, their credentials, and who a request comes from.

A person is known by a record of this controller, or by a certificate that an ancestor issued: whoever stands above has authority
here, nobody else in the tree has. Grants of one's own users are read from the record at every request, so a change counts at
once; an ancestor's are in the certificate. Credentials are dated by whoever is asked. The loopback admin is signed by the site's
own CA and works with nobody in reach, from the machine itself only.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from cluster_controller.documents import decode
from cluster_controller.errors import InvalidInput, Unauthenticated
from cluster_controller.identity import certificates, revocation, token
from cluster_controller.identity.certificates import UserCertificate
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.users import Grant, User, groups_of
from cluster_controller.resources import kinds
from cluster_controller.tree.records import OWN, View
from cluster_controller.tree.times import format_time, parse_time

CREDENTIAL_GROUP = "banyan:credential:"
ADMIN_NAME = "admin"
MAX_SEEN = 4096


class NewCredential(Struct, frozen=True, kw_only=True):
    """``stored`` goes into the User's status, ``shown`` into the one answer to the create and nowhere else."""

    stored: dict[str, str]
    shown: dict[str, str]


def new_credential(identity: Identity, name: str, spec: kinds.UserSpec, now: datetime) -> NewCredential:
    """A certificate with its key, or a bearer token of which only a salted hash is kept."""
    lifetime = timedelta(seconds=spec.expires_after_seconds)
    stored = {"phase": "Active", "expires": format_time(now + lifetime)}
    if spec.credential == "token":
        text, identifier, secret = token.new_bearer()
        stored |= {"credentialId": identifier, "digest": token.hash_secret(secret)}
        return NewCredential(stored=stored, shown={"token": text})
    made = identity.user_credential(name, grants_of(spec), now, lifetime)
    stored["credentialId"] = made.id
    return NewCredential(stored=stored, shown={"certificate": made.certificate.decode("ascii"), "key": made.key.decode("ascii")})


def grants_of(spec: kinds.UserSpec) -> tuple[Grant, ...]:
    return tuple(Grant(grant.role, grant.namespace) for grant in spec.grants)


class Account(Struct, frozen=True):
    """A User record as far as authentication asks."""

    name: str
    credential: str
    digest: str
    expires: datetime
    grants: tuple[Grant, ...]
    revoked: bool


class People:
    """Authentication. All methods raise Unauthenticated, whose message says what to do and gives nothing away."""

    def __init__(self, view: View, identity: Callable[[], Identity], revoked: Callable[[], revocation.Revoked]) -> None:
        self._view = view
        self._identity = identity
        self._revoked = revoked
        self._accounts: dict[str, Account] | None = None
        self._foreign: OrderedDict[str, UserCertificate] = OrderedDict()  # by credential id, of ancestors' users seen here

    def changed(self) -> None:
        """A User object has changed: read them again when next asked."""
        self._accounts = None

    def certificate(self, chain: Sequence[bytes], now: datetime, remote: str | None = None) -> User:
        """Who showed ``chain`` (DER, leaf first) and proved to hold its key. ``remote`` is the peer's address, where known."""
        identity = self._identity()
        try:
            anchored = certificates.anchored(chain, (*identity.anchors, identity.site.certificate))
            shown = certificates.user_identity(anchored)
        except InvalidInput as error:
            raise Unauthenticated(f"the client certificate is not accepted: {error}; make one with `banyan user create`") from error
        path = _path(shown.issuers)
        if shown.admin:  # whatever its dates: whoever has to set this machine's clock must be let in
            return self._admin(identity, shown, path, remote)
        self._judge_dates(shown.name, shown.not_after, now, shown.not_before)
        if path in ((identity.uid,), identity.path):
            return self._own(shown.id, shown.name, now)
        if identity.path[: len(path)] == path:
            return self._from_above(shown)
        raise Unauthenticated(
            f"the certificate of {shown.name} was issued by cluster {shown.issuer}, which does not stand above this one; "
            "ask this cluster's admin for a user"
        )

    def bearer(self, text: str, now: datetime) -> User:
        split = token.split_bearer(text)
        account = self._by_credential().get(split[0]) if split else None
        if split is None or account is None or not account.digest or not token.matches(split[1], account.digest):
            raise Unauthenticated("the bearer token is not known here; make one with `banyan user create --credential token`")
        return self._account(account, now)

    def again(self, user: User, now: datetime) -> User:
        """The same user at a later request on the same connection, with today's grants."""
        identifier = next((group.removeprefix(CREDENTIAL_GROUP) for group in user.groups if group.startswith(CREDENTIAL_GROUP)), "")
        if identifier == ADMIN_NAME:
            return user
        foreign = self._foreign.get(identifier)
        if foreign is None:
            return self._own(identifier, user.name, now)
        self._judge_dates(foreign.name, foreign.not_after, now)
        return self._from_above(foreign)

    # --- each way to be known ---

    def _admin(self, identity: Identity, shown: UserCertificate, path: tuple[str, ...], remote: str | None) -> User:
        if path not in ((identity.uid,), identity.path):
            raise Unauthenticated("the loopback admin credential of another site is worth nothing here")
        if remote is not None and not _is_loopback(remote):
            raise Unauthenticated("the loopback admin credential works on the machine itself only; make a user with `banyan user create`")
        grants = (Grant("admin"),)
        return User(ADMIN_NAME, (*groups_of(grants), CREDENTIAL_GROUP + ADMIN_NAME), identity.uid, grants)

    def _own(self, credential: str, name: str, now: datetime) -> User:
        account = self._by_credential().get(credential)
        if account is None:
            raise Unauthenticated(f"the credential of {name} is not known here any more; make one with `banyan user create`")
        return self._account(account, now)

    def _account(self, account: Account, now: datetime) -> User:
        if account.revoked or revocation.user(self._revoked(), account.credential):
            raise Unauthenticated(f"user {account.name} was revoked")
        self._judge_dates(account.name, account.expires, now)
        return self._user(account.name, account.credential, account.grants)

    def _from_above(self, shown: UserCertificate) -> User:
        if revocation.user(self._revoked(), shown.id):
            raise Unauthenticated(f"user {shown.name} was revoked")
        self._foreign[shown.id] = shown
        self._foreign.move_to_end(shown.id)
        if len(self._foreign) > MAX_SEEN:
            self._foreign.popitem(last=False)
        return self._user(shown.name, shown.id, shown.grants)

    def _user(self, name: str, credential: str, grants: tuple[Grant, ...]) -> User:
        return User(name, (*groups_of(grants), CREDENTIAL_GROUP + credential), self._identity().uid, grants)

    def _judge_dates(self, name: str, not_after: datetime, now: datetime, not_before: datetime | None = None) -> None:
        if now > not_after:
            raise Unauthenticated(
                f"the credential of {name} expired at {format_time(not_after)}, here it is {format_time(now)}; ask for a new one"
            )
        if not_before is not None and now < not_before:
            raise Unauthenticated(
                f"the credential of {name} begins at {format_time(not_before)}, here it is {format_time(now)}; set this machine's clock"
            )

    def _by_credential(self) -> dict[str, Account]:
        if self._accounts is None:
            read = (_account(decode(stored.document, kinds.User)) for stored in self._view.list(OWN, "User"))
            self._accounts = {account.credential: account for account in read if account.credential}
        return self._accounts


def _account(user: kinds.User) -> Account:
    status = user.status
    return Account(
        name=user.metadata.name,
        credential=status.credential_id,
        digest=status.digest,
        expires=parse_time(status.expires) if status.expires else parse_time("1970-01-01T00:00:00Z"),
        grants=grants_of(user.spec),
        revoked=user.spec.revoked or status.phase == "Revoked" or bool(user.metadata.deletion_timestamp),
    )


def _path(issuers: tuple[str, ...]) -> tuple[str, ...]:
    """uids from the top down; a site CA under its own issuing certificate names its cluster twice."""
    path: list[str] = []
    for uid in reversed(issuers):
        if not path or path[-1] != uid:
            path.append(uid)
    return tuple(path)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
