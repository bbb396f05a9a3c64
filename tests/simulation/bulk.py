"""Bulk on slow links: what stands for a model on its way, in the lane that models and snapshots ride in, while people and controllers
have something short to say over the same link.

Held to: a link that carries bulk answers a short word soon, in both lanes that matter (the word's OPEN is control, its bytes are
interactive); it does not die, and so no cluster is lost, because of bulk; what was sent arrives whole, or its sender is told that it did
not. A link that something else is wrong with is not judged.

Here a kernel tells what it holds (`SimWire.sample`), so that bulk is paced as it is on a machine.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from cluster_controller.errors import BanyanError
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import Lane
from cluster_controller.tunnel.stream import Stream
from tests.simulation.families import Family, family
from tests.simulation.life import Life
from tests.simulation.reach import awake
from tests.simulation.steps import Plan, Step
from tests.simulation.ways import Conditions
from tests.simulation.world import Place

SERVICE, WORD = "simulation.bulk", "simulation.word"
LOOK_SECONDS = 0.5
WORD_EVERY = 4.0
WORD_SECONDS = 2.0  # for a short word to be answered at 64 kB/s; a kernel's buffers full of bulk alone take longer
STEADY_SECONDS = 25.0  # after something else was wrong with a link, TCP may wait for so long before it tries again
CHUNK = 16 * 1024


class Transfer:
    """Several streams at once from ``above`` to ``place``, over the slow link of ``place``."""

    def __init__(self, above: Place, place: Place, conditions: Conditions, now: float) -> None:
        self.above, self.place, self.conditions = above, place, conditions
        self.open = 0  # streams under way
        self.bad = now - STEADY_SECONDS + 2.0  # when something else was wrong last
        self.link: Link | None = None
        self.lives: tuple[Life | None, Life | None] = (place.parent.life if place.parent is not None else None, place.life)


@family
class Bulk(Family):
    name = "bulk"
    steps = frozenset({"bulk"})

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.world.network.tells = True
        self._transfers: dict[Transfer, None] = {}
        self.carried = 0  # bytes that arrived, of transfers that arrived whole
        self.words = 0  # that were judged

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        for _ in range(rng.randint(3, 5)):
            place = rng.choice([name for name, parent in plan.tree.items() if parent])
            bandwidth = rng.choice((64e3, 128e3, 256e3))
            seconds = rng.uniform(20.0, 60.0)
            args = {
                "bandwidth": bandwidth,
                "delay": rng.choice((0.02, 0.1)),
                "streams": rng.randint(4, 8),
                "bytes": int(bandwidth * seconds),
                "from": rng.choice(("parent", "root")),
            }
            yield Step(begin + rng.uniform(0.0, length), "bulk", place, seconds * 2.0, args)

    def do(self, step: Step) -> None:
        place, args = self.world.places[step.place], step.args
        above = self.world.root if args["from"] == "root" else place.parent
        if above is None or not (awake(above) and awake(place)) or any(each.place is place for each in self._transfers):
            return
        before = self.world.network.conditions[place.name]
        conditions = Conditions(delay=args["delay"], jitter=0.0, bandwidth=args["bandwidth"])
        self.world.network.conditions[place.name] = conditions
        transfer = Transfer(above, place, conditions, self.world.loop.time())
        self._transfers[transfer] = None
        self.run.faults.begin(step.kind, step.place, step.seconds, lambda: self._mend(transfer, before))
        assert place.controller is not None
        place.controller.tunnel.handle(SERVICE, self._takes)
        place.controller.tunnel.handle(WORD, _answers)
        transfer.open = args["streams"]
        for _ in range(args["streams"]):
            above.run(self._sends(transfer, args["bytes"] // args["streams"]))
        self._watch(transfer, 0.0)

    def _mend(self, transfer: Transfer, before: Conditions) -> None:
        self._transfers.pop(transfer, None)
        if self.world.network.conditions[transfer.place.name] is transfer.conditions:
            self.world.network.conditions[transfer.place.name] = before

    # --- the two ends ---

    async def _sends(self, transfer: Transfer, size: int) -> None:
        assert transfer.above.controller is not None
        try:
            stream = await transfer.above.controller.tunnel.open(transfer.place.uid, SERVICE, lane=Lane.BULK)
            left = size
            while left > 0:
                await stream.write(bytes(min(CHUNK, left)))
                left -= CHUNK
            await stream.close_write()
            said = await stream.read()
            if said != str(size).encode():
                self.invariants.violated("bulk arrives whole", f"{transfer.place.name} has {said!r} of {size} bytes")
            self.carried += size
        except BanyanError:
            return  # it was told so
        finally:
            transfer.open -= 1

    async def _takes(self, stream: Stream) -> None:
        count = 0
        while data := await stream.read():
            count += len(data)
        await stream.write(str(count).encode())
        await stream.close_write()

    # --- while it lasts ---

    def _watch(self, transfer: Transfer, said: float) -> None:
        """Every half second: is something else wrong, did the link die, is it time for another word?"""
        loop = self.world.loop
        if transfer not in self._transfers or not transfer.open:
            return
        if not self._steady(transfer):
            transfer.bad = loop.time()
        elif loop.time() - said >= WORD_EVERY and self._judged(transfer):
            said = loop.time()
            assert transfer.place.parent is not None
            transfer.place.parent.run(self._word(transfer))
        loop.call_later(LOOK_SECONDS, self._watch, transfer, said, context=self.world.network.kernel)

    def _judged(self, transfer: Transfer) -> bool:
        return self.world.loop.time() - transfer.bad >= STEADY_SECONDS

    def _steady(self, transfer: Transfer) -> bool:
        """Nothing is wrong with the link but that it is slow; when it has died all the same, that was bulk's doing."""
        place, parent, network = transfer.place, transfer.place.parent, self.world.network
        if parent is None or parent.controller is None or not (awake(place) and awake(parent)):
            transfer.link = None
            return False
        ways = [pipe for pipe in network.pipes if {pipe.source_name, pipe.target_name} == {place.name, parent.name}]
        usual = network.conditions[parent.name] is self.world.usual[parent.name] and network.conditions[place.name] is transfer.conditions
        lives = (parent.life, place.life)
        fine = usual and not ways and network.passes(place.name, parent.name) and lives == transfer.lives and not parent.machine.full
        link = parent.controller.tunnel.links.get(place.uid)
        if (
            fine
            and self._judged(transfer)
            and transfer.link is not None
            and link is not transfer.link
            and place.name not in self._restless()
        ):
            self.invariants.violated("bulk starves nobody", f"the link from {parent.name} to {place.name} died while it carried bulk")
        transfer.link, transfer.lives = link, lives
        return fine and link is not None

    def _restless(self) -> set[str]:
        """Whose links end for other reasons."""
        return self.invariants.rewound | self.invariants.moved

    async def _word(self, transfer: Transfer) -> None:
        """From the parent, over the link that carries bulk, and back."""
        place, parent = transfer.place, transfer.place.parent
        assert parent is not None and parent.controller is not None
        loop, asked = self.world.loop, self.world.loop.time()
        link = transfer.link
        due = loop.call_later(WORD_SECONDS, self._late, transfer, link, context=self.world.network.kernel)
        try:
            stream = await parent.controller.tunnel.open(place.uid, WORD)
            await stream.write(b"well?")
            await stream.close_write()
            while await stream.read():
                pass
            self.words += 1
            self.world.note(parent.name, f"has a word of {place.name} after {loop.time() - asked:.3f} s")
        except BanyanError:
            return
        finally:
            due.cancel()

    def _late(self, transfer: Transfer, link: Link | None) -> None:
        if transfer in self._transfers and self._steady(transfer) and self._judged(transfer) and transfer.link is link:
            what = f"{transfer.place.name} has not answered a word for {WORD_SECONDS:g} s over a link that carries bulk"
            self.invariants.violated("bulk starves nobody", what)

    # --- at quiet points ---

    def unhealed(self) -> Iterator[tuple[str, str]]:
        """No stream of a transfer is left."""
        for place in self.world.places.values():
            for link in _links(place):
                left = [stream for stream in link.connection.streams.values() if stream.lane is Lane.BULK and _of_ours(stream.handle)]
                if left and not self._transfers:
                    yield "streams end", f"{place.name} holds {len(left)} streams of transfers that have ended"


def _links(place: Place) -> list[Link]:
    controller = place.controller
    if controller is None or not place.alive:
        return []
    tunnel = controller.tunnel
    return [*tunnel.links.values(), *([tunnel.parent] if tunnel.parent is not None else [])]


def _of_ours(handle: object) -> bool:
    return isinstance(handle, Stream) and handle.service == SERVICE


async def _answers(stream: Stream) -> None:
    data = await stream.read()
    await stream.write(data)
    await stream.close_write()
