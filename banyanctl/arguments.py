"""Values that people type: durations, labels, names. Each refusal names what was typed and shows a right one."""

import re
from collections.abc import Iterable

from cluster_controller.errors import InvalidInput

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str, option: str) -> int:
    """`90s`, `15m`, `24h`, `7d`, `1d12h` → seconds."""
    parts = re.findall(r"(\d+)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidInput(f"{option}: {text!r} is no duration; write for example 15m, 24h or 7d", option)
    total = sum(int(number) * UNITS[unit] for number, unit in parts)
    if not total:
        raise InvalidInput(f"{option}: {text!r} is no time at all", option)
    return total


def labels(words: Iterable[str], option: str = "--labels") -> dict[str, str]:
    """`k=v`, `k=v,k2=v2`, repeated or not → one mapping."""
    found: dict[str, str] = {}
    for part in (part.strip() for word in words for part in word.split(",")):
        key, separator, value = part.partition("=")
        if not separator or not key:
            raise InvalidInput(f"{option}: {part!r} is not KEY=VALUE", option)
        if found.setdefault(key, value) != value:
            raise InvalidInput(f"{option}: {key} is given twice, as {found[key]!r} and {value!r}", option)
    return found


def cluster_name(text: str, option: str = "NAME") -> str:
    """A DNS label: what names of clusters and objects are."""
    if not DNS_LABEL.fullmatch(text):
        raise InvalidInput(
            f"{option}: {text!r} cannot be a name: 1 to 63 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit",
            option,
        )
    return text
