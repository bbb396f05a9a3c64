"""Throw hostile messages at the state machine, many: `python -m tests.tunnel.fuzz [COUNT] [SEED]`.

Each input is a message: rubbish, or valid messages that were cut, repeated, shuffled or changed in a few bytes, so that most of it reaches
deep. The machine must answer with `ProtocolError` or take it, keep every bound (`memory.check`), and go on making messages. The run
prints what it counted; a failure prints the seed and the input.
"""

import random
import sys
import time
from collections import Counter

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import Lane, Open
from cluster_controller.tunnel.protocol import codec, frames
from tests.tunnel.memory import Cable, Node, check
from tests.tunnel.samples import CONTROL, PAYLOADS, encode

LIMITS = Limits(
    initial_window=4096, max_window=8192, link_budget=32768, max_streams=6, send_buffer=4096, max_control=65536, control_queue=65536
)
KINDS = {"heartbeat": frames.HEARTBEAT, "open": frames.OPEN, "reset": frames.RESET, "go": frames.GO_AWAY}
LIFE = 40  # inputs that one connection sees


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.corpus = [frames.frame(frames.CONTROL, 0, encode(one)) for one in CONTROL.values()]
        self.corpus += [frames.frame(KINDS[name.split("_")[0]], 2, encode(one)) for name, one in PAYLOADS.items()]
        self.counts: Counter[str] = Counter()
        self.fresh()

    def fresh(self) -> None:
        self.parent, self.child = Node("parent", LIMITS), Node("child", LIMITS)
        self.cable = Cable(self.parent, self.child)
        self.next_id = 2
        self.left = LIFE
        self.child.onward = Cable(self.child, Node("deep", LIMITS)).down
        self.mine = [self.child.open(self.cable.up, "parent", b"%d" % number, Lane.SYNC) for number in range(2)]

    def message(self) -> bytes:
        parts = [self.part() for _ in range(self.dice.randint(1, 5))]
        if self.dice.random() < 0.2:
            self.dice.shuffle(parts)
        data = bytearray(b"".join(parts))
        if self.dice.random() < 0.35 and data:
            for _ in range(self.dice.randint(1, 4)):
                data[self.dice.randrange(len(data))] = self.dice.randrange(256)
        if self.dice.random() < 0.1 and data:
            del data[self.dice.randrange(len(data)) :]
        return bytes(data)

    def part(self) -> bytes:
        dice = self.dice
        choice = dice.random()
        if choice < 0.05:
            return dice.randbytes(dice.randint(0, 40))
        if choice < 0.3:
            id, self.next_id = self.next_id, self.next_id + 2
            lane = dice.choice([Lane.INTERACTIVE, Lane.SYNC, Lane.BULK, Lane.CONTROL])
            destination = dice.choice([("child",), ("deep",), ()])
            return frames.frame(frames.OPEN, id, codec.encode_payload(Open(destination=destination, metadata=b"%d" % id, lane=lane)))
        if choice < 0.65:
            flags = frames.END if dice.random() < 0.1 else 0
            return frames.frame(frames.DATA, self.id(), dice.randbytes(dice.choice([0, 1, 64, 900])), flags) * dice.randint(1, 3)
        if choice < 0.75:
            return frames.frame(frames.CREDIT, self.id(), frames.U32.pack(dice.choice([0, 1, 4096, 2**31, 2**32 - 1])))
        return dice.choice(self.corpus)

    def id(self) -> int:
        return self.dice.choice([self.next_id - 2, max(0, self.next_id - 4), 1, 3, self.dice.randrange(12)])

    def step(self) -> None:
        up = self.cable.up
        message = self.message()
        try:
            up.receive(message, self.cable.now)
            for ear in list(self.child.ears.values())[-8:]:
                ear.read(self.dice.choice([0, 100, 5000]))
                ear.write(b"w" * self.dice.choice([0, 10, 3000]))
            for ear in self.mine:
                ear.write(b"m" * 500)
            check(up)
            if self.dice.random() < 0.7:
                up.message(self.cable.now)
            self.counts["taken"] += 1
            if up.failure is not None:
                raise up.failure
            self.left -= 1
        except ProtocolError as error:
            self.counts[f"refused {error.code}"] += 1
            up.lost("violation")
            assert not up.streams, message
            self.left = 0
        if not self.left:
            self.fresh()
        self.cable.now += 0.01


def fuzz(count: int, seed: int) -> Counter[str]:
    fuzzer = Fuzzer(seed)
    for number in range(count):
        try:
            fuzzer.step()
        except BaseException:
            sys.stderr.write(f"seed {seed}, input {number}\n")
            raise
    return fuzzer.counts


if __name__ == "__main__":
    amount = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    chosen = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    begun = time.monotonic()
    found = fuzz(amount, chosen)
    sys.stdout.write(f"{amount:,} inputs, seed {chosen}, {time.monotonic() - begun:.0f} s: {dict(found.most_common())}\n")
