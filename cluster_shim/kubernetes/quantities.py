"""Kubernetes quantities as whole numbers: millicores and bytes. Pure.

What a member says of itself is read, never refused: a quantity that cannot be read counts as nothing.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

_FORM = re.compile(r"([+-]?[0-9.]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?[0-9]{1,3})?")
_UNITS = {
    None: Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
MOST = 2**62  # more than any machine has; what claims more is no size

Quantities = Mapping[str, str | int | float]


def _number(quantity: str | float) -> Decimal:
    if isinstance(quantity, str):
        found = _FORM.fullmatch(quantity.strip())
        if found is None:
            return Decimal(0)
        digits, suffix = found.groups()
        try:
            return Decimal(digits) * (_UNITS[suffix] if suffix in _UNITS else Decimal(f"1{suffix}"))
        except InvalidOperation:
            return Decimal(0)
    return Decimal(str(quantity))


def _whole(number: Decimal) -> int:
    if not number.is_finite() or not -MOST <= number <= MOST:
        return 0
    return int(number.to_integral_value(rounding="ROUND_CEILING"))  # as Kubernetes rounds: never less than was asked


def millis(quantity: str | float) -> int:
    """``"1500m"``, ``"1.5"`` and ``1.5`` → 1500."""
    return _whole(_number(quantity) * 1000)


def units(quantity: str | float) -> int:
    """``"1Ki"``, ``"1024"`` and ``1024`` → 1024."""
    return _whole(_number(quantity))
