"""The process that holds one member together: it starts and signals its components, and nothing of them outlives it or its owner.

Run as a program (`machine.py` does) with a JSON description; standard library only, so that it is up in 30 ms. It is two processes:

- the *outer* one, in the host's namespaces, waits for two deaths: its owner's (through a pidfd, which says so even after SIGKILL) and the
  inner one's; then it removes cgroups, and after its owner's death the member's folder.
- the *inner* one is process 1 of a process namespace, and of a mount and a network namespace where the member has a node. It starts what
  the owner asks for and reaps. When it dies, by whatever hand, the kernel kills everything in its namespace, containers too, and with the
  last of them go mounts and network. It dies with the outer one (PR_SET_PDEATHSIG). Ending it is a power cut, and how a reboot begins.

Where no process namespace can be had (no root rights, user namespaces forbidden), the inner one adopts orphans and components die with it.

The owner speaks JSON lines over a socket: start, signal, status, off. Every answer is one line.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x1000, 0x4000, 0x40000, 0x100000
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
DEFAULT_SIGNALS = (
    signal.SIGCHLD,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGPIPE,
)  # a component gets these as it expects them
LINE = 1 << 20
API_PORT = 6443
LIBC = ctypes.CDLL(None, use_errno=True)
ADMINISTRATORS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def call(name: str, *arguments: Any) -> None:
    """A function of libc. Raises OSError with its name."""
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)


def run(*argv: str, stdin: str | None = None) -> None:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30, check=False, env={"PATH": ADMINISTRATORS_PATH})
    if done.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")


# --- outer: waits for deaths, and cleans up ---


def outer(description: dict[str, Any], control: socket.socket, owner: int) -> int:
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    isolated = _new_process_namespace()
    pid = os.fork()
    if pid == 0:
        os.close(ready_read)
        os.close(go_write)
        code = 1
        try:
            code = inner(description, control, ready_write, go_read, isolated)
        except OSError as error:
            with contextlib.suppress(OSError):
                control.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
        finally:
            os._exit(code)
    control.close()
    if (door := description["door"]) is not None:
        os.close(door)
    os.close(ready_write)
    os.close(go_read)
    child = os.pidfd_open(pid)
    folder = Path(description["folder"])
    (folder / "keeper.json").write_text(json.dumps({"pid": os.getpid(), "started": _started(), "inner": pid}), encoding="utf-8")
    if os.read(ready_read, 1):
        if network := description.get("network"):
            _plug_in(network)
        os.write(go_write, b"g")
    ready, _, _ = select.select([child, owner], [], [])
    if child not in ready:
        if not isolated:
            select.select([child], [], [], 5)  # it sees the same by its socket, and alone knows what runs
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)  # returns when everything in the namespace is gone
    _remove_cgroups(description["cgroups"])
    # Nobody said off: then the owner is dying, and its sockets were closed a moment before it is dead.
    if select.select([owner], [], [], 0 if status == 0 else 2)[0]:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "keeper.json").unlink(missing_ok=True)
    return 0


def _started() -> str:
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()}/{fields[19]}"


def _new_process_namespace() -> bool:
    """True when children of this process will be in a process namespace of their own."""
    user, group = os.getuid(), os.getgid()
    with contextlib.suppress(OSError):
        if user != 0:
            call("unshare", CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        call("unshare", CLONE_NEWPID)
        return True
    return False


def _plug_in(network: dict[str, str]) -> None:
    """A cable from this machine to the member's uplink. Both ends go with the member's network namespace.

    What this process starts counts pids in the member's namespace, where the inner process is 1.
    """
    # After a power cut the kernel takes the last network namespace apart when it has time: its cable may still be there.
    with contextlib.suppress(OSError):
        run("ip", "link", "delete", network["link"])
    run("ip", "link", "add", network["link"], "type", "veth", "peer", "name", "uplink", "netns", "1")
    run("ip", "address", "add", f"{network['gateway']}/32", "peer", f"{network['address']}/32", "dev", network["link"])
    run("ip", "link", "set", network["link"], "up")


def _remove_cgroups(cgroups: list[str]) -> None:
    for _ in range(20):
        for top in cgroups:
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        if not any(Path(top).exists() for top in cgroups):
            return
        time.sleep(0.05)  # a process that has been killed leaves its cgroup a moment later


# --- inner: process 1 of the member ---


def inner(description: dict[str, Any], control: socket.socket, ready: int, go: int, isolated: bool) -> int:
    """Until the owner says off, which is 0, or is no longer there."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not isolated:
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    network = description.get("network")
    if network:
        call("unshare", CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
        Path("/proc/sys/kernel/hostname").write_text(description["hostname"], encoding="utf-8")
        _mounts(Path(description["folder"]))
    os.write(ready, b"r")
    if not os.read(go, 1):
        return 1
    if network:
        _site_network(network)
        for top in description["cgroups"]:
            Path(top).mkdir(exist_ok=True)
        if os.fork() == 0:
            open_door(description["door"], control)
        os.close(description["door"])
    return 0 if Children(control, isolated).serve() else 1


def _mounts(folder: Path) -> None:
    """What a machine has of its own: /proc, an empty /run, and /var/lib and /var/log on its own disk, which a reboot keeps."""
    call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    for name in ("lib", "log"):
        (folder / name).mkdir(exist_ok=True)
        mount(str(folder / name), f"/var/{name}", "none", MS_BIND)
    mount("tmpfs", "/run", "tmpfs")
    mount("proc", "/proc", "proc")
    Path("/run/lock").mkdir()
    call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SHARED), None)  # volumes that containers share need it


def _site_network(network: dict[str, str]) -> None:
    """A site's network with a router in it: a private network that all sites have alike, translated on the way out; nothing comes in."""
    for path, value in (("ipv4/ip_forward", "1"), ("bridge/bridge-nf-call-iptables", "1")):
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/sys/net/{path}").write_text(value, encoding="ascii")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "lan", "type", "bridge")
    run("ip", "address", "add", f"{network['lan']}/24", "dev", "lan")
    run("ip", "link", "set", "lan", "up")
    run("ip", "address", "add", f"{network['address']}/32", "peer", f"{network['gateway']}/32", "dev", "uplink")
    run("ip", "link", "set", "uplink", "up")
    run("ip", "route", "add", "default", "via", network["gateway"], "dev", "uplink")
    run("nft", "-f", "-", stdin=FIREWALL)


FIREWALL = """
table inet site {
  chain in { type filter hook input priority -10; iifname "uplink" ct state new drop; }
  chain through { type filter hook forward priority -10; iifname "uplink" ct state new drop; }
}
table ip site_nat {
  chain out { type nat hook postrouting priority 90; oifname "uplink" masquerade; }
}
"""


def open_door(number: int, control: socket.socket) -> None:
    """The tests' own way in: a socket that listens on the host, which stays where it was made, answered from inside the site's network."""
    import asyncio

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", API_PORT)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        inner_writer.close()
        writer.close()

    async def serve() -> None:
        listener = socket.socket(fileno=number)
        await (await asyncio.start_server(relay, sock=listener)).serve_forever()

    try:
        control.close()
        asyncio.run(serve())
    finally:
        os._exit(1)


class Children:
    """The components: their pids and exit codes, by name."""

    def __init__(self, control: socket.socket, isolated: bool) -> None:
        self.control = control
        self.isolated = isolated
        self.pids: dict[str, int] = {}
        self.codes: dict[str, int] = {}

    def serve(self) -> bool:
        """Answer the owner until it says off, closes or dies; reap all the time. True when it said off."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.control.sendall(b'{"ok": true}\n')
        buffer = b""
        while True:
            ready, _, _ = select.select([self.control.fileno(), wake_read], [], [])
            if wake_read in ready:
                os.read(wake_read, 4096)
                self.reap()
            if self.control.fileno() in ready:
                data = self.control.recv(65536)
                buffer += data
                if not data or len(buffer) > LINE:
                    break
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    answer = self.answer(json.loads(line))
                    if answer is None:
                        self.end()
                        return True
                    self.control.sendall(json.dumps(answer).encode() + b"\n")
        self.end()
        return False

    def end(self) -> None:
        """In a namespace of its own the kernel does the rest; elsewhere every descendant is looked for."""
        for _ in range(200):
            pids = [] if self.isolated else descendants(os.getpid())
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        self.reap()
        try:
            match request["op"]:
                case "off":
                    return None
                case "start":
                    self.start(**request["program"])
                case "signal":
                    os.kill(self.pids[request["name"]], request["signal"])
        except (OSError, KeyError) as error:
            return {"error": f"{request['op']}: {error!r}"}
        return {"pids": self.pids, "codes": self.codes}

    def start(self, name: str, argv: list[str], environment: dict[str, str], log: str, folder: str) -> None:
        if name in self.pids:
            raise OSError(f"{name} runs already")
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                if not self.isolated:
                    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                signal.set_wakeup_fd(-1)
                for number in DEFAULT_SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.closerange(3, 256)
                os.chdir(folder)
                os.execvpe(argv[0], argv, environment)
            except OSError as error:
                os.write(2, f"{argv[0]}: {error}\n".encode())
            finally:
                os._exit(127)
        self.pids[name] = pid
        self.codes.pop(name, None)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for name in [name for name, known in self.pids.items() if known == pid]:
                    del self.pids[name]
                    self.codes[name] = os.waitstatus_to_exitcode(status)


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *descendants(int(child))]
    return found


def main() -> int:
    description = json.loads(sys.argv[1])
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    owner = int(sys.argv[3])
    os.set_inheritable(owner, False)
    if description["door"] is not None:
        os.set_inheritable(description["door"], False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its owner decides
    return outer(description, control, owner)


if __name__ == "__main__":
    sys.exit(main())
