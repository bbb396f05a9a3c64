"""When to renew, and what an issuer says to a certificate's dates. Pure; only an issuer judges, by its own clock (law 4)."""

from datetime import datetime, timedelta
from enum import StrEnum

from cluster_controller.identity.certificates import PeerCertificate

RENEW_AT = 2 / 3
"""Fraction of its life after which a certificate is renewed."""
RETRY = (timedelta(minutes=1), timedelta(hours=6))
SKEW_WARNING = timedelta(minutes=5)


class Dates(StrEnum):
    GOOD = "good"
    EXPIRED = "expired"
    """May speak Renew and nothing else."""
    AHEAD = "ahead"
    """Begins in the issuer's future: the issuer's clock went back since. Admitted, with a warning."""


def judge(peer: PeerCertificate, me: str, now: datetime) -> Dates:
    """``now`` is the wall clock of ``me``. What somebody else issued is for them to judge."""
    if peer.issuer != me:
        return Dates.GOOD
    if now > peer.not_after:
        return Dates.EXPIRED
    return Dates.AHEAD if now < peer.not_before else Dates.GOOD


def due(not_before: datetime, not_after: datetime, now: datetime, spread: float) -> timedelta:
    """How long until renewal; zero when it is due.

    ``spread`` in [0, 1) is drawn once per cluster, so that a thousand sites which joined together do not renew together: they
    are spread over a tenth of the certificate's life. A clock before ``not_before`` is not trusted: renew now, the parent's
    clock decides.
    """
    if now < not_before:
        return timedelta(0)
    moment = not_before + (not_after - not_before) * (RENEW_AT - 0.1 * spread)
    return max(timedelta(0), moment - now)


def retry(attempt: int) -> timedelta:
    """Pause after the ``attempt``-th failed renewal (from 0): doubling from a minute to six hours."""
    low, high = RETRY
    doubled: timedelta = low * (1 << min(attempt, 16))
    return min(high, doubled)


def skew(mine: datetime, theirs: datetime) -> str | None:
    """A warning with both times when two clocks differ noticeably. It never fails anything."""
    if abs(mine - theirs) <= SKEW_WARNING:
        return None
    return f"the clocks differ: here it is {mine:%Y-%m-%d %H:%M:%S} UTC, at the other side {theirs:%Y-%m-%d %H:%M:%S} UTC"
