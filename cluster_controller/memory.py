"""Memory that goes back to the system when much was moved: an edge has little, and others run beside it."""

import ctypes


def trim() -> None:
    """Give back what was freed; glibc keeps it otherwise, spread between what is in use. Takes milliseconds: call it from a thread."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
    if give_back is not None:
        give_back(0)
