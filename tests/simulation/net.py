"""A simulated network below real links: ordered byte streams with delay, loss, stalls, cuts and resets, and the wire of a link on it.

`SimWire` stands where `tunnel.wire.Wire` stands: it carries the same messages between two `Link`s and tells both what TLS would
have told them, the peer's verified chain. As with TCP nothing is lost or reordered within one connection; a cut only stalls it.
What is sent meanwhile arrives when the cut has healed, perhaps over a connection that its receiver has long replaced. One side may
be gone without a word (power), or with one (the kernel of a killed process resets its connections).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from cluster_controller.errors import InvalidInput, ProtocolError
from cluster_controller.identity import certificates
from cluster_controller.tunnel.messages import CloseCode
from cluster_controller.tunnel.protocol.connection import LinkStats
from cluster_controller.tunnel.protocol.pacing import Sample
from tests.simulation.history import History
from tests.simulation.life import LIFE, Life, Machine
from tests.simulation.ways import Conditions, Cut

if TYPE_CHECKING:
    from tests.simulation.loop import Turn, VirtualLoop

SEND_BUFFER = 64 * 1024  # bytes under way after which a wire is not writable
HEADERS = 66  # bytes of Ethernet, IP, TCP, TLS and WebSocket around a message
HANDSHAKE_BYTES = 2500
RTO = 0.2  # seconds after which TCP sends again what was lost
LONGEST_RTO = 20.0


class SimContext(NamedTuple):
    """Where an `ssl.SSLContext` stands: the chain that is presented, and the tree that is demanded (DER)."""

    chain: tuple[bytes, ...]
    tree_ca: bytes


def pem_ders(pem: bytes) -> tuple[bytes, ...]:
    return tuple(certificates.der(each) for each in certificates.parse_pem(pem, "a simulated context"))


class Listener:
    def __init__(self, network: "Network", factory: Callable[[], "SimWire"], address: tuple[str, int], life: Life) -> None:
        self.network, self.factory, self.address, self.life = network, factory, address, life
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def close(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]


class Network:
    def __init__(self, loop: "VirtualLoop", rng: Random, history: History) -> None:
        self.loop = loop
        self.rng = rng
        self.history = history
        self.machines: dict[str, Machine] = {}
        self.conditions: dict[str, Conditions] = {}
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.cuts: list[Cut] = []
        self.pipes: dict[Pipe, None] = {}  # those that stall
        self.wires: dict[SimWire, None] = {}  # those that are open
        self.kernel = Context()  # nobody's: machines take packets whatever becomes of processes
        self._changed: list[asyncio.Future[None]] = []
        self.delivered = 0
        self.tells = False  # kernels tell what they hold and measure of a connection

    def add(self, machine: Machine, conditions: Conditions) -> None:
        self.machines[machine.name] = machine
        self.conditions[machine.name] = conditions

    # --- what faults do ---

    def cut(self, one: Collection[str], other: Collection[str], *, one_way: bool = False) -> Cut:
        cut = Cut(frozenset(one), frozenset(other), one_way)
        self.cuts.append(cut)
        return cut

    def heal(self, cut: Cut) -> None:
        self.cuts.remove(cut)
        self.changed()

    def changed(self) -> None:
        """Something may pass again: who waits tries."""
        waiting, self._changed = self._changed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for pipe in list(self.pipes):
            pipe.retry()

    def blocked(self, source: str, target: str) -> bool:
        return bool(self.cuts) and any(cut.blocks(source, target) for cut in self.cuts)

    def passes(self, one: str, other: str) -> bool:
        """Both ways, both powered."""
        return self.machines[one].powered and self.machines[other].powered and not self.blocked(one, other) and not self.blocked(other, one)

    def pause(self, source: str, target: str) -> float:
        """Seconds that one packet takes."""
        one, other = self.conditions[source], self.conditions[target]
        pause = one.delay + other.delay + (one.jitter + other.jitter) * self.rng.random()
        loss = 1.0 - (1.0 - one.loss) * (1.0 - other.loss)
        again = RTO
        while loss and self.rng.random() < loss and again < LONGEST_RTO:
            pause += again
            again *= 2
        return pause

    def process_ended(self, life: Life) -> None:
        """The kernel resets what a killed process had open; a machine without power says nothing."""
        for listener in [each for each in self.listeners.values() if each.life is life]:
            listener.close()
        for wire in [each for each in self.wires if each.life is life]:
            wire.process_ended()

    # --- what programs do ---

    def listen(self, factory: Any, host: str, port: int) -> Listener:
        life = LIFE.get()
        assert life is not None
        address = (host, port)
        if address in self.listeners:
            raise OSError(98, "Address already in use")
        listener = self.listeners[address] = Listener(self, factory, address, life)
        return listener

    async def connect(self, factory: Any, host: str, port: int) -> tuple[Any, Any]:
        """As TCP does it: refused at once by a machine that listens not, never answered by one that cannot be reached."""
        life = LIFE.get()
        assert life is not None
        source = life.machine.name
        if host not in self.machines:
            raise OSError(-2, "Name or service not known")
        while not self.passes(source, host):
            waiting = self.loop.create_future()
            self._changed.append(waiting)
            try:
                await waiting
            finally:
                if waiting in self._changed:
                    self._changed.remove(waiting)
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))  # until the next SYN is due
        await asyncio.sleep(self.pause(source, host) + self.pause(host, source))
        listener = self.listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        wire: SimWire = factory()
        wire.connected(self, life, host, dialled=listener)
        return wire, wire

    def accepted(self, listener: Listener, dialler: "SimWire") -> None:
        """The first packet of a connection has come to the machine that listens."""
        life = listener.life
        if life.dead or self.listeners.get(listener.address) is not listener:
            dialler.outgoing.refused()
            return
        if life.frozen:
            self.loop.defer(life, self._accept, listener, dialler)
        else:
            life.context.run(self._accept, listener, dialler)

    def _accept(self, listener: Listener, dialler: "SimWire") -> None:
        wire = listener.factory()
        wire.connected(self, listener.life, dialler.life.machine.name, dialled=None)
        wire.outgoing.target, dialler.outgoing.target = dialler, wire
        wire.outgoing.push("server", None, HANDSHAKE_BYTES)


class Pipe:
    """One direction of a connection."""

    __slots__ = (
        "_last", "_stalled", "_stalled_at", "_waiting", "network", "pushed", "source", "source_name", "target", "target_name", "under_way",
    )  # fmt: skip

    def __init__(self, network: Network, source: "SimWire", target_name: str) -> None:
        self.network = network
        self.source = source
        self.source_name = source.life.machine.name
        self.target: SimWire | Gone | None = None
        self.target_name = target_name
        self.under_way = 0  # bytes that the other side has not taken
        self.pushed = 0  # bytes in all
        self._last = 0.0
        self._stalled: deque[tuple[str, Any, int]] = deque()
        self._stalled_at = 0.0
        self._waiting = False

    def push(self, kind: str, payload: Any, size: int) -> None:
        self.under_way += size
        self.pushed += size
        if self._stalled:
            self._stalled.append((kind, payload, size))
            return
        network = self.network
        bandwidth = min(network.conditions[self.source_name].bandwidth, network.conditions[self.target_name].bandwidth)
        now = network.loop.time()
        self._last = max(self._last + size / bandwidth, now + size / bandwidth + network.pause(self.source_name, self.target_name))
        network.loop.call_at(self._last, self._arrive, (kind, payload, size), context=network.kernel)

    def sample(self) -> Sample:
        """As TCP_INFO has it, of a way that is as it is now."""
        one, other = self.network.conditions[self.source_name], self.network.conditions[self.target_name]
        bandwidth, shortest = min(one.bandwidth, other.bandwidth), 2 * (one.delay + other.delay)
        return Sample(self.under_way, shortest + self.under_way / bandwidth, shortest, bandwidth, self.pushed - self.under_way)

    def _arrive(self, item: tuple[str, Any, int]) -> None:
        network = self.network
        if not network.machines[self.target_name].powered:
            return
        if self._stalled or network.blocked(self.source_name, self.target_name):
            if not self._stalled:
                self._stalled_at = network.loop.time()
                network.pipes[self] = None
            self._stalled.append(item)
            return
        self._take(item)

    def _take(self, item: tuple[str, Any, int]) -> None:
        kind, payload, size = item
        self.under_way -= size
        target = self.target
        if target is None:
            if kind == "client":
                self.network.accepted(payload, self.source)
            return
        life = target.life
        if isinstance(target, Gone) or life.dead or target.gone:
            if kind not in ("reset", "closed"):
                self.refused()
        elif life.frozen:
            self.network.loop.defer(life, target.receive, kind, payload, size)
        else:
            life.context.run(target.receive, kind, payload, size)
        if self.source.waits and self.under_way < SEND_BUFFER // 2:
            self.source.waits = False
            pause = self.network.conditions[self.target_name].delay
            self.network.loop.call_later(pause, self.source.resume, context=self.source.life.context)

    def retry(self) -> None:
        """The way may be open: TCP finds out when it sends again."""
        if self._waiting or self.network.blocked(self.source_name, self.target_name):
            return
        self._waiting = True
        stalled = self.network.loop.time() - self._stalled_at
        pause = self.network.rng.uniform(RTO / 2, min(LONGEST_RTO, RTO + stalled))
        self.network.loop.call_later(pause, self._drain, context=self.network.kernel)

    def _drain(self) -> None:
        self._waiting = False
        if not self.network.machines[self.target_name].powered:
            self._stalled.clear()
            self.network.pipes.pop(self, None)
            return
        if self.network.blocked(self.source_name, self.target_name):
            return
        self.network.pipes.pop(self, None)
        stalled, self._stalled = self._stalled, deque()
        for item in stalled:
            self._take(item)
        self._last = max(self._last, self.network.loop.time())

    def dropped(self) -> None:
        """The sending machine lost its power: what it still held is gone."""
        self._stalled.clear()
        self.network.pipes.pop(self, None)

    def refused(self) -> None:
        """The other machine knows no such connection."""
        network = self.network
        if not network.machines[self.target_name].powered or network.blocked(self.target_name, self.source_name):
            return
        pause = network.pause(self.target_name, self.source_name)
        network.loop.call_later(pause, self.source.reset, context=self.source.life.context)


class _Tls:
    """What TLS knows of the peer."""

    def __init__(self, chain: tuple[bytes, ...]) -> None:
        self._chain = chain

    def verified_chain(self) -> tuple[bytes, ...]:
        return self._chain

    presented_chain = verified_chain


_judged: dict[tuple[tuple[bytes, ...], bytes], bool] = {}  # signatures that were checked, over all runs of this process


def of_tree(chain: tuple[bytes, ...], tree_ca: bytes) -> bool:
    """As TLS judges a chain, without dates."""
    key = chain, tree_ca
    if key not in _judged:
        try:
            certificates.verify_chain([certificates.parse(each) for each in chain], certificates.parse(tree_ca))
            _judged[key] = True
        except InvalidInput:
            _judged[key] = False
    return _judged[key]


class Gone:
    """What is left of an end of a connection: a kernel that knows no such connection any more."""

    gone = True

    def __init__(self, life: Life, context: SimContext) -> None:
        self.life, self._context = life, context


class SimWire:
    """One end of one connection; the interface of `tunnel.wire.Wire`."""

    def __init__(self, owner: Any, context: SimContext, wires: Any, *, name: str | None, connect: object = None) -> None:
        self._owner = owner
        self._context = context
        self._wires = wires
        self._name = name
        self._reported = False
        self._code = 0
        self._ready = False
        self._tls: _Tls | None = None
        self._close_timer: Turn | None = None
        self.network: Network
        self.life: Life
        self.outgoing: Pipe
        self.waits = False  # until what is under way has become less
        self.gone = False
        self.stats = LinkStats()
        self.address = ""

    @property
    def writable(self) -> bool:
        if not self._ready or self.gone or self._code or self._reported:
            return False
        if self.outgoing.under_way >= SEND_BUFFER:
            self.waits = True
            return False
        return True

    @property
    def closing(self) -> bool:
        return self.gone or bool(self._code)

    @property
    def behind(self) -> None:
        return None

    @property
    def tls(self) -> _Tls:
        assert self._tls is not None
        return self._tls

    def sample(self) -> Sample | None:
        """What the kernel measures of this connection, where it tells; where it does not, bulk is not paced."""
        return self.outgoing.sample() if self.network.tells else None

    def stuck_since(self) -> float | None:
        return None

    def connected(self, network: Network, life: Life, peer: str, *, dialled: Listener | None) -> None:
        self.network, self.life = network, life
        self.address = f"{peer}:{dialled.address[1] if dialled is not None else 40000}"
        self.outgoing = Pipe(network, self, peer)
        self._wires.open.add(self)
        network.wires[self] = None
        if self._code or self._wires.closing:
            self._lost()
            return
        if dialled is not None:
            self.outgoing.push("client", dialled, HANDSHAKE_BYTES)

    def send(self, message: bytes | bytearray) -> None:
        if self.life.dead or self.gone:
            return
        size = len(message) + HEADERS
        self.stats.bytes_out += size
        self.outgoing.push("data", bytes(message), size)

    def close(self, code: int, reason: str) -> None:
        if self.closing:
            return
        self._code = int(code)
        if not hasattr(self, "outgoing"):
            return
        if not self.life.dead:
            self.outgoing.push("close", (int(code), reason.encode()[:123].decode(errors="ignore")), 200)
            self._close_timer = self.network.loop.call_later(self._wires.limits.close_time, self._lost)

    # --- what comes ---

    def receive(self, kind: str, payload: Any, size: int) -> None:
        if self.gone:
            return
        self.stats.bytes_in += size
        self._owner.wire_received()
        try:
            self._receive(kind, payload)
        except ProtocolError as error:
            self.close(error.code, str(error))
            self._report(error.code, str(error))

    def _receive(self, kind: str, payload: Any) -> None:
        network = self.network
        if kind == "data":
            if not self._code:
                network.delivered += 1
                now = network.loop.time()
                network.history.note(now, self.outgoing.source_name, f"< {self.outgoing.target_name} {len(payload)} {hash_of(payload)}")
                self._owner.wire_message(payload)
        elif kind == "server":
            self.outgoing.push("upgrade", None, HANDSHAKE_BYTES)
        elif kind == "upgrade":
            self._greet()
            self.outgoing.push("upgraded", None, 300)
        elif kind == "upgraded":
            self._greet()
        elif kind == "close":
            self.outgoing.push("closed", None, 100)
            self._lost()
            self._report(payload[0], payload[1] or f"the peer closed with code {payload[0]}")
        elif kind == "closed":
            self._lost()
        elif kind == "reset":
            self.reset()

    def _greet(self) -> None:
        """TLS and WebSocket are through on this side."""
        peer = self.outgoing.target
        assert peer is not None
        theirs = peer._context
        if not of_tree(theirs.chain, self._context.tree_ca):
            raise ProtocolError("the peer's certificate is not of this tree", CloseCode.PROTOCOL)
        self._tls = _Tls((*theirs.chain, self._context.tree_ca))
        self._ready = True
        self._owner.wire_ready()

    def resume(self) -> None:
        if not self.closing:
            self._owner.wire_writable()

    def reset(self) -> None:
        if not self.gone:
            self._lost()
            self._report(1006, "the connection broke: Connection reset by peer")

    def process_ended(self) -> None:
        """The process is no more. Its machine says so if it still can."""
        self.gone = True
        self.network.wires.pop(self, None)
        if self.life.machine.powered:
            self.outgoing.push("reset", None, 60)
        else:
            self.outgoing.dropped()

    def _lost(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self.gone:
            return
        self.gone = True
        self.network.wires.pop(self, None)
        if isinstance(self.outgoing.target, SimWire):
            self.outgoing.target.outgoing.target = Gone(self.life, self._context)  # whoever still holds the other end holds nothing of this
        self._wires.lost(self)

    def _report(self, code: int, reason: str) -> None:
        if not self._reported:
            self._reported = True
            self._owner.wire_lost(code, reason)


def hash_of(message: bytes) -> str:
    return f"{crc32(message):08x}"
