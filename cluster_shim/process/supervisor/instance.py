"""One instance through its life: start behind a gate, run, exit, back off, start again, stop with grace, vanish.

The promises: at most one process at a time (see `record`); a process that is to run is started again for ever, after a capped
delay; whatever a process leaves behind when it ends is killed before the next one starts; only `STOP` makes it vanish.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time

from cluster_shim.process.supervisor import crash, files, loop, proc
from cluster_shim.process.supervisor.limits import over_memory
from cluster_shim.process.supervisor.logfile import QUIET_SECONDS, LogFile
from cluster_shim.process.supervisor.record import RUN, STOP, Spec, State
from cluster_shim.process.supervisor.sockets import allow_fetching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from cluster_shim.process.supervisor.core import Supervisor

STARTING, RUNNING, BACKOFF, STOPPING = "Starting", "Running", "BackOff", "Stopping"
FIRST_DELAY, MAX_DELAY = 0.5, 60.0  # seconds
STEADY_SECONDS = 10.0  # a run as long as this is forgiven at once and forgets earlier failures
DRAIN_SECONDS, DRAIN_LOOK_SECONDS = 1.0, 0.01  # for connections that are already in the queue of an instance that is to end
LISTEN_FIRST = 3  # sd_listen_fds(3)


def delay_after(failures: int) -> float:
    """Seconds to wait before the start that follows ``failures`` short runs in a row."""
    return 0.0 if failures == 0 else min(FIRST_DELAY * 2.0 ** (min(failures, 16) - 1), MAX_DELAY)


class Instance:
    def __init__(self, supervisor: Supervisor, spec: Spec, state: State) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop
        self.spec = spec
        self.state = state
        self.phase = STARTING
        self.log = LogFile(supervisor.folder.of(spec.id), supervisor.log_bytes)
        self._pidfd = -1
        self._error_fd = -1  # closes at exec, or says why there was none
        self._child = False
        self._ran_since = 0.0
        self._failures = 0  # short runs in a row
        self._pause = 0.0  # seconds between the last end and the next start
        self._oom_kills = 0
        self._timer: loop.Timer | None = None

    @property
    def pid(self) -> int:
        return self.state.pid if self._pidfd >= 0 else 0

    def view(self) -> dict[str, Any]:
        return {
            "id": self.spec.id,
            "labels": self.spec.labels,
            "phase": BACKOFF if self.phase == STOPPING and self.state.wanted == RUN else self.phase,  # a restart: it does not go
            "pid": self.pid,
            "restarts": self.state.restarts,
            "reason": self.state.reason,
            "message": self.state.message,
            "exit_code": self.state.exit_code,
            "last_line": self.state.last_line,
            "last_started_unix": self.state.last_started_unix,
            "finished_unix": self.state.finished_unix,
            "failures": self._failures,
            "pause": self._pause,
            "started_unix": self.state.started_unix,
            "usage": self._supervisor.limits.folders(self.spec.id),
        }

    # Coming to life

    def resume(self) -> None:
        """After the supervisor started: take the recorded process over if it lives, else do what is wanted."""
        state = self.state
        pidfd = proc.open_same(state.pid, state.start) if state.pid and state.boot == self._supervisor.boot else None
        if pidfd is None and state.token:
            pidfd = self._find_by_token()
        if pidfd is not None:
            self._child = proc.parent(state.pid) == os.getpid()
            self._follow(pidfd)
            self.phase = RUNNING
            self._watch_log()
            if state.wanted == STOP:
                self._signal_stop()
        elif state.wanted == STOP:
            self._vanish()
        else:
            if state.pid:
                self._sweep()
                rebooted = state.boot != self._supervisor.boot
                state.restarts += 1
                state.reason, state.message = (
                    ("Rebooted", "the machine restarted") if rebooted else ("Lost", "it ended while nobody watched")
                )
                self._note_end(-1)
            self.start()

    def _find_by_token(self) -> int | None:
        """The record of the process was lost (a damaged file), the process was not: its environment names this start."""
        for pid in proc.with_environment(b"BANYAN_START=" + self.state.token.encode()):
            start = proc.start_time(pid)
            # A descendant carries the token too; the instance itself leads its session.
            if start is not None and os.getsid(pid) == pid and (pidfd := proc.open_same(pid, start)) is not None:
                self.state.pid, self.state.start, self.state.boot = pid, start, self._supervisor.boot
                self._save()
                return pidfd
        return None

    def start(self) -> None:
        self._timer = None
        self.phase = STARTING
        self.state.token = os.urandom(16).hex()
        self.state.pid = self.state.start = 0
        try:
            self._save()
            crash.point("start.intended")
            self._spawn()
        except OSError as error:  # disk full, no processes or descriptors left: heals or is seen, never ends the supervisor
            self._ended("StartFailed", f"cannot be started: {error.strerror or error}", -1)
        else:
            crash.point("start.released")
        self._supervisor.changed(self)

    def _spawn(self) -> None:
        log = self.log.begin_run()
        gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
        error_read, error_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        sockets = self._supervisor.sockets_of(self.spec)
        pid = os.fork()
        if pid == 0:
            os.close(gate_write)
            self._child_main(gate_read, error_write, log, sockets)
        for fd in (log, gate_read, error_write):
            os.close(fd)
        for fd in sockets[1]:
            os.close(fd)
        crash.point("start.forked")
        try:
            self._record(pid)
        except OSError:
            os.close(gate_write)  # shut for good: the child ends without having run anything
            os.close(error_read)
            os.waitpid(pid, 0)
            raise
        crash.point("start.recorded")
        os.write(gate_write, b"g")
        os.close(gate_write)
        self._error_fd = error_read
        self._loop.watch(error_read, lambda _events: self._exec_done())

    def _record(self, pid: int) -> None:
        state = self.state
        state.pid, state.start, state.boot = pid, proc.start_time(pid) or 0, self._supervisor.boot
        state.started_unix = time.time()
        self._save()
        limits = self._supervisor.limits
        limits.attach(self.spec.id, pid, self.spec.cpu_millis, self.spec.memory_bytes)
        self._oom_kills = limits.oom_kills(self.spec.id)
        pidfd = os.pidfd_open(pid)
        self._child = True
        self._follow(pidfd)
        self._watch_log()

    def _child_main(self, gate: int, error: int, log: int, sockets: tuple[list[str], list[int]]) -> NoReturn:
        """Between fork and exec. Nothing here may return into the supervisor's own code."""
        try:
            self._supervisor.close_in_child()
            os.setsid()
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if os.read(gate, 1) != b"g":
                os._exit(1)
            self._become(error, log, sockets)
        except OSError as problem:
            os.write(error, f"{self.spec.argv[0]}: {problem.strerror or problem}".encode()[:1024])
        finally:
            os._exit(127)

    def _become(self, error: int, log: int, sockets: tuple[list[str], list[int]]) -> NoReturn:
        names, descriptors = sockets
        # Out of the way first: a socket's own number may be the place of another.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in descriptors]
        error = fcntl.fcntl(error, fcntl.F_DUPFD_CLOEXEC, 100)
        log = fcntl.fcntl(log, fcntl.F_DUPFD_CLOEXEC, 100)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for position, fd in enumerate(high):
            os.dup2(fd, LISTEN_FIRST + position)
        if names:
            allow_fetching()
        os.umask(0o022)
        os.chdir(self.spec.cwd)
        self._supervisor.limits.in_child(self.spec.memory_bytes)
        env = dict(self.spec.env)
        env["BANYAN_START"] = self.state.token
        if names:
            env.update(LISTEN_FDS=str(len(names)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=":".join(names))
        os.execvpe(self.spec.argv[0], self.spec.argv, env)  # noqa: S606 - no shell is the point

    def _exec_done(self) -> None:
        try:
            message = os.read(self._error_fd, 1024)
        except BlockingIOError:
            return
        self._loop.forget(self._error_fd)
        os.close(self._error_fd)
        self._error_fd = -1
        if message:
            self.state.reason, self.state.message = "StartFailed", message.decode(errors="replace")
        elif self._pidfd >= 0 and self.phase == STARTING:
            self.phase = RUNNING
            self._supervisor.changed(self)

    # Ending

    def _follow(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._ran_since = loop.now()
        self._loop.watch(pidfd, lambda _events: self._exited())

    def _exited(self) -> None:
        if self._error_fd >= 0:
            self._exec_done()
        failed_start = self.state.reason == "StartFailed" and self.phase == STARTING
        code = -1
        if self._child:
            # Still a zombie: its pid, and so its group's id, cannot belong to anyone else yet.
            _kill_group(self.state.pid)
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            reason, message, code = _explain(result.si_code, result.si_status) if result else ("Exited", "", -1)
        else:
            reason, message = "Exited", "it ended; how is not known, it was started by an earlier supervisor"
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._timer is not None:
            self._timer.cancel()
        self._sweep()
        crash.point("exit.reaped")
        if self._supervisor.limits.oom_kills(self.spec.id) > self._oom_kills:
            reason, message = "OOMKilled", over_memory(self.spec.memory_bytes)
        if failed_start:
            reason, message = self.state.reason, self.state.message
        elif self.phase == STOPPING and self.state.wanted == RUN:
            reason, message = self.state.reason, self.state.message  # whoever asked for the restart said why
        self._ended(reason, message, code)
        self._supervisor.changed(self)

    def _sweep(self) -> None:
        """Kill what the process left behind; with a group by its members, and in any case by the token in the environment."""
        for pid in self._supervisor.limits.pids(self.spec.id):
            _kill(pid)
        if self.state.token:
            proc.kill_all_with_environment(b"BANYAN_START=" + self.state.token.encode())

    def _ended(self, reason: str, message: str, code: int) -> None:
        if self.state.wanted == STOP:
            self._vanish()
            return
        self.log.note()
        steady = self._ran_since and loop.now() - self._ran_since >= STEADY_SECONDS
        self._failures = 0 if steady else self._failures + 1
        self._ran_since = 0.0
        self.state.restarts += 1
        self._pause = delay_after(self._failures)
        self.state.reason, self.state.message = reason, message
        self._note_end(code)
        self.phase = BACKOFF
        self._timer = self._loop.call_at(loop.now() + self._pause, self.start)

    def _note_end(self, code: int) -> None:
        """What people ask first after a crash, kept although the next run begins a new log."""
        state = self.state
        state.exit_code, state.last_line = code, self.log.last_line()
        state.last_started_unix, state.finished_unix = state.started_unix, time.time()

    def start_soon(self) -> None:
        """What it waited for is there: no more waiting."""
        if self.phase == BACKOFF and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_at(loop.now(), self.start)

    def restart(self, reason: str, message: str, *, at_once: bool = False) -> None:
        """End this run and begin another, because a probe or a measurement says so; ``at_once``: without grace."""
        if self._pidfd < 0 or self.state.wanted == STOP or self.phase == STOPPING:
            return
        self.state.reason, self.state.message = reason, message
        self.phase = STOPPING
        proc.send(self._pidfd, signal.SIGKILL if at_once else signal.SIGTERM)
        self._timer = self._loop.call_at(loop.now() + self.spec.grace, self._kill_now)
        self._supervisor.changed(self)

    def stop(self, grace: float | None = None) -> None:
        """Idempotent; a second time may shorten the grace, never lengthen it."""
        state = self.state
        deadline = loop.now() + (self.spec.grace if grace is None else grace)
        if state.wanted == STOP and state.deadline <= deadline:
            return
        first = state.wanted != STOP
        state.wanted, state.deadline = STOP, deadline
        self._save()
        crash.point("stop.intended")
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd < 0:
            self._vanish()
        elif first:
            self._signal_stop()
        else:
            self._timer = self._loop.call_at(deadline, self._kill_now)

    def _signal_stop(self) -> None:
        self.phase = STOPPING
        self._timer = self._loop.call_at(self.state.deadline, self._kill_now)
        self._ask_to_end(loop.now() + DRAIN_SECONDS)
        self._supervisor.changed(self)

    def _ask_to_end(self, latest: float) -> None:
        """Not before the connections that only this instance can accept are accepted: a server that is told to end stops listening."""
        if self._pidfd < 0:
            return
        if loop.now() < latest and not self._supervisor.may_go(self):
            self._loop.call_at(loop.now() + DRAIN_LOOK_SECONDS, lambda: self._ask_to_end(latest))
            return
        proc.send(self._pidfd, signal.SIGTERM)
        crash.point("stop.signalled")

    def _kill_now(self) -> None:
        if self._pidfd >= 0:
            proc.send(self._pidfd, signal.SIGKILL)

    def _vanish(self) -> None:
        trash = self._supervisor.folder.discard(self.spec.id)
        crash.point("remove.moved")
        files.remove_tree(trash)
        self._supervisor.limits.remove(self.spec.id)
        self._supervisor.gone(self)

    def _save(self) -> None:
        self._supervisor.folder.save(self.spec.id, self.state)

    # Log

    def _watch_log(self) -> None:
        self._supervisor.watcher.watch(self.log.path, self._log_written)

    def _log_written(self) -> None:
        self.log.note()
        self._loop.call_at(loop.now() + QUIET_SECONDS, self._log_again)

    def _log_again(self) -> None:
        if self._pidfd >= 0:
            self._watch_log()  # armed before looking: a write in between fires
            self.log.note()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _explain(code: int, status: int) -> tuple[str, str, int]:
    """Reason, message, and the exit code as a shell would give it."""
    if code == os.CLD_EXITED:
        return ("Completed" if status == 0 else "Error"), f"it exited with code {status}", status
    try:
        name = signal.Signals(status).name
    except ValueError:
        name = str(status)
    return "Error", f"it was ended by {name}", 128 + status
