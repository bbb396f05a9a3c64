"""Why a join fails: one error per cause, each with its own exit code, message and remedy.

    JoinError
    ├── TokenUsed            20   another cluster has joined with it
    ├── TokenExpired         21   by the clock of the parent that it names
    ├── TokenForeign         22   it belongs to another parent, or that parent does not know it
    ├── TokenAltered         23   it was not copied whole; found before anything is sent
    ├── NameTaken            24
    ├── WrongAuthority       25   who answers is not of the tree that the token pins
    ├── ParentUnreachable    26
    ├── NotApproved          27   a person has to approve; run the same command again
    ├── JoinRevoked          28   the token, or the cluster, was revoked
    └── ProxyRefused         29

Codes 20–29 belong to joining; what is not about joining (a bad name, a data folder in use) has the tree's general codes.
"""

from enum import StrEnum

from cluster_controller.errors import JoinError


class Cause(StrEnum):
    """What a parent answers; the value travels."""

    USED = "used"
    EXPIRED = "expired"
    FOREIGN = "foreign"
    NAME_TAKEN = "name-taken"
    PENDING = "pending"
    REVOKED = "revoked"
    INVALID = "invalid"
    BUSY = "busy"


class TokenUsed(JoinError):
    exit_code = 20


class TokenExpired(JoinError):
    exit_code = 21


class TokenForeign(JoinError):
    exit_code = 22


class TokenAltered(JoinError):
    exit_code = 23


class NameTaken(JoinError):
    exit_code = 24


class WrongAuthority(JoinError):
    exit_code = 25


class ParentUnreachable(JoinError):
    exit_code = 26


class NotApproved(JoinError):
    """``retry_after`` in seconds is the parent's wish."""

    exit_code = 27

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JoinRevoked(JoinError):
    exit_code = 28


class ProxyRefused(JoinError):
    exit_code = 29
