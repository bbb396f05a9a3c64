"""Kubernetes quantities: `250m`, `1.5`, `128Mi`, `2e3`.

Exact decimal arithmetic, rounded up to the unit asked for, because a request of `0.1m` must not become nothing. Bounded: what
does not fit into a signed 64-bit count of units, or is negative, is refused with the reason.
Source of the grammar: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import re
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

from cluster_controller.errors import InvalidInput

LARGEST = 2**63 - 1
_GRAMMAR = re.compile(r"([+-]?)(\d{1,32}(?:\.\d{0,32})?|\.\d{1,32})(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,4}))?", re.ASCII)
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


@lru_cache(maxsize=1024, typed=True)  # the same few are asked for again and again; what is refused is never kept
def parse(value: str | int | float, field: str = "") -> Decimal:
    """The exact value in the base unit (cores, bytes). InvalidInput names ``field``."""
    text = str(value)
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{_shown(text)} is not a quantity; write a number with an optional suffix, as in 250m, 1.5 or 128Mi", field)
    sign, number, suffix, exponent = match.groups()
    result = Decimal(number)
    if suffix:
        result *= _SUFFIXES[suffix]
    elif exponent:
        result = result.scaleb(int(exponent)) if result else result
    if sign == "-" and result:
        raise InvalidInput(f"{_shown(text)} is negative; a quantity is zero or more", field)
    if result > LARGEST:
        raise InvalidInput(f"{_shown(text)} is too large; the largest quantity is {LARGEST}", field)
    return result


def millis(value: str | int | float, field: str = "") -> int:
    """Thousandths of the base unit, rounded up: millicores for cpu."""
    return _whole(parse(value, field) * 1000, value, field)


def micros(value: str | int | float, field: str = "") -> int:
    """Millionths of the base unit, rounded up: of a currency, for prices."""
    return _whole(parse(value, field) * 1_000_000, value, field)


def units(value: str | int | float, field: str = "") -> int:
    """Whole base units, rounded up: bytes for memory."""
    return _whole(parse(value, field), value, field)


def format_millis(value: int) -> str:
    """`250` → `250m`, `2000` → `2`."""
    return f"{value}m" if value % 1000 else str(value // 1000)


def format_bytes(value: int) -> str:
    """The shortest exact form with a binary suffix: `134217728` → `128Mi`, `1000` → `1000`."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIXES[suffix])
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)


def _whole(value: Decimal, given: str | int | float, field: str) -> int:
    result = int(value.to_integral_value(ROUND_CEILING))
    if result > LARGEST:
        raise InvalidInput(f"{_shown(str(given))} is too large; the largest quantity is {LARGEST}", field)
    return result


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
