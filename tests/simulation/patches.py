"""Puts the simulated world under the real controllers: clocks, entropy, keys, the wire, the disk. All in one place, undone at the end.

Nothing else of the product is replaced; `mutants` does that on purpose.
"""

import contextlib
import os
import random
import secrets
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, tzinfo
from types import SimpleNamespace
from typing import Any
from unittest import mock

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cluster_controller import clock, tasks
from cluster_controller.identity import certificates, contexts, holder, keys
from cluster_controller.identity.authority import Lifetimes
from cluster_controller.identity.holder import Identity
from cluster_controller.store import health
from cluster_controller.store import store as stores
from cluster_controller.tunnel import dialer, server
from cluster_controller.tunnel.link import Link
from tests.simulation.disk import SimDatabase, try_room
from tests.simulation.history import History, drop, fields
from tests.simulation.life import EPOCH, LIFE
from tests.simulation.net import SimContext, SimWire, pem_ders

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

MANY_CHAINS = 10_000
LINKS: "weakref.WeakSet[Link]" = weakref.WeakSet()  # that are in memory; to look for them among all that is there takes a while
_link_made = Link.__init__


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        life = LIFE.get()
        return life.machine.wall() if life is not None else EPOCH


def _clock_gettime(which: int) -> float:
    life = LIFE.get()
    assert life is not None, "only a process reads clocks"
    return life.machine.now() - life.machine.booted  # written out: nothing is called more often


_verify_chain = certificates.verify_chain
_good_chains: set[tuple[bytes, ...]] = set()


def _verify_once(chain: Sequence[x509.Certificate], anchor: x509.Certificate) -> None:
    """The real check, once for each chain: signatures are most of what a start costs."""
    key = (*map(certificates.der, chain), certificates.der(anchor))
    if key not in _good_chains:
        _verify_chain(chain, anchor)
        if len(_good_chains) > MANY_CHAINS:
            _good_chains.clear()
        _good_chains.add(key)


def _sign(key: keys.PrivateKey, purpose: str, data: bytes) -> bytes:
    return key.sign(keys._message(purpose, data), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def _known(self: Link, *args: Any, **keywords: Any) -> None:
    _link_made(self, *args, **keywords)
    LINKS.add(self)


def _server(key: bytes, chain: bytes, tree_ca: bytes) -> SimContext:
    return SimContext(pem_ders(chain), pem_ders(tree_ca)[0])


async def _narrow(target: Any, segment: int) -> Any:
    """Segments have no size here; the loop takes the address for the socket."""
    return target


def _others(function: Any) -> tuple[Any, ...]:
    """Its defaults but for the last, which says how long certificates are good for."""
    assert isinstance(function.__defaults__[-1], Lifetimes)
    return tuple(function.__defaults__[:-1])


def _deterministic(builder: type) -> Any:
    original = builder.sign  # type: ignore[attr-defined]

    def sign(self: Any, key: Any, algorithm: Any) -> Any:
        return original(self, key, algorithm, ecdsa_deterministic=True)

    return mock.patch.object(builder, "sign", sign)


@contextlib.contextmanager
def installed(seed: int, history: History, now: Callable[[], float], lifetimes: Lifetimes) -> Iterator[None]:
    """For one world."""
    dice = random.Random(f"entropy {seed}")

    def token_bytes(count: int | None = None) -> bytes:
        return dice.randbytes(32 if count is None else count)

    def logged(logger: Any, name: str, event: Any) -> Any:
        life = LIFE.get()
        if life is None or not life.dead:
            history.note(now(), life.machine.name if life is not None else "-", f"{event['event']} {fields(event)}")
            if event.get("exc_info"):
                history.aside(traceback.format_exc())
        return drop(logger, name, event)

    before = structlog.get_config()
    state = random.getstate()
    tasks.crashes.clear()
    random.seed(seed)
    structlog.configure(processors=[logged], wrapper_class=structlog.make_filtering_bound_logger(20), cache_logger_on_first_use=False)
    dated = (Identity.__init__, holder.load, holder.create_root)
    replaced = [
        mock.patch.object(clock, "time", SimpleNamespace(clock_gettime=_clock_gettime, CLOCK_BOOTTIME=7)),
        mock.patch.object(clock, "datetime", _Datetime),
        mock.patch.object(secrets, "token_bytes", token_bytes),
        mock.patch.object(secrets, "choice", dice.choice),
        mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(bytes=dice.randbytes(16), version=4)),
        *(mock.patch.object(each, "__defaults__", (*_others(each), lifetimes)) for each in dated),
        mock.patch.object(keys, "generate", lambda: ec.derive_private_key(dice.randrange(1, P256_ORDER), ec.SECP256R1())),
        mock.patch.object(keys, "sign", _sign),
        mock.patch.object(x509, "random_serial_number", lambda: dice.getrandbits(150) | 1),
        _deterministic(x509.CertificateBuilder),
        _deterministic(x509.CertificateSigningRequestBuilder),
        mock.patch.object(certificates, "verify_chain", _verify_once),
        mock.patch.object(contexts, "tunnel_server", _server),
        mock.patch.object(contexts, "tunnel_client", _server),
        mock.patch.object(Link, "__init__", _known),
        mock.patch.object(server, "Wire", SimWire),
        mock.patch.object(dialer, "Wire", SimWire),
        mock.patch.object(dialer, "_narrow", _narrow),
        mock.patch.object(stores, "Database", SimDatabase),
        mock.patch.object(health, "try_room", try_room),
        mock.patch.dict(os.environ),
    ]
    with contextlib.ExitStack() as stack:
        for each in replaced:
            stack.enter_context(each)
        for name in ("https_proxy", "HTTPS_PROXY"):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            structlog.configure(**before)
            random.setstate(state)
