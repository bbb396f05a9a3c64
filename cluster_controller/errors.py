"""The errors a caller can act on.

    BanyanError
    ├── InvalidInput      what was given is wrong; the message names the field and the remedy   exit 2
    ├── NotFound          the named thing does not exist                                        exit 3
    ├── AlreadyExists     the name or uid is taken                                              exit 4
    ├── Conflict          somebody else changed it first, or a decision by a person is needed   exit 5
    ├── Forbidden         known, but not allowed                                                exit 6
    ├── Unauthenticated   not known                                                             exit 7
    ├── Unreachable       the other side does not answer; says which hop and since when         exit 8
    ├── Exhausted         a stated bound is reached; says which and when to try again           exit 9
    ├── StoreError        the disk or the database refuses                                      exit 10
    │   ├── StoreCorrupt
    │   ├── StoreFull
    │   ├── StoreReadOnly
    │   ├── StoreTooNew
    │   └── StoreInUse
    ├── JoinError         joining failed; one subclass per cause in `identity.join`             exit 20–29
    └── ProtocolError     the peer broke the protocol; the link is closed with a code           exit 11

Messages name the thing, the reason and what to do next. No message carries a secret.
"""

from typing import ClassVar


class BanyanError(Exception):
    """Root of all errors raised on purpose. ``exit_code`` is what the command line exits with."""

    exit_code: ClassVar[int] = 1


class InvalidInput(BanyanError):
    """What was given cannot be used; ``field`` is the dotted path of the offending field, if there is one."""

    exit_code = 2

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(BanyanError):
    exit_code = 3


class AlreadyExists(BanyanError):
    exit_code = 4


class Conflict(BanyanError):
    exit_code = 5


class Forbidden(BanyanError):
    exit_code = 6


class Unauthenticated(BanyanError):
    exit_code = 7


class Unreachable(BanyanError):
    exit_code = 8


class Exhausted(BanyanError):
    """A bound is reached. ``retry_after`` is in seconds; None when waiting does not help."""

    exit_code = 9

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreError(BanyanError):
    exit_code = 10


class StoreCorrupt(StoreError):
    pass


class StoreFull(StoreError):
    pass


class StoreReadOnly(StoreError):
    pass


class StoreTooNew(StoreError):
    pass


class StoreInUse(StoreError):
    pass


class ProtocolError(BanyanError):
    """The peer broke the tunnel protocol. ``code`` is the close code sent to it."""

    exit_code = 11

    def __init__(self, message: str, code: int = 1002) -> None:
        super().__init__(message)
        self.code = code


class JoinError(BanyanError):
    exit_code = 20
