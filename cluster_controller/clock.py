"""The two clocks. Freshness is measured on the boot-time clock of the listener; only an issuer reads the wall clock.

Boot time goes on while the machine sleeps and never jumps, so "how long ago did I hear" survives suspend and NTP steps
(ARCHITECTURE law 4).
"""

import time
from datetime import UTC, datetime
from pathlib import Path


def boottime() -> float:
    """Seconds since this machine booted, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> datetime:
    """The wall clock in UTC, for certificate dates and timestamps that people read."""
    return datetime.now(UTC)


def timestamp() -> str:
    """Now, for people: RFC 3339 in UTC, to the second."""
    return wall().replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def boot_id() -> str:
    """The kernel's random id of this boot; boot-time readings are comparable only within one."""
    with Path("/proc/sys/kernel/random/boot_id").open(encoding="ascii") as file:
        return file.read().strip()
