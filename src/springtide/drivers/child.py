"""Child processes: started with a log file, ended by pid, and never left behind when the parent dies."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from springtide.errors import EngineError
from springtide.ports import Clock

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_S = 0.02
_TERMINATE = signal.SIGTERM  # inside the class, `signal` is the method
LOG_TAIL_LINES = 8


def _before_exec(groups: Sequence[Path], *, die_with_parent: bool) -> None:
    """Runs in the child before exec, after any change of user: the kernel ends it when its parent ends (prctl(2))."""
    for group in groups:
        descriptor = os.open(group, os.O_WRONLY)
        os.write(descriptor, b"0")
        os.close(descriptor)
    if die_with_parent:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One process that we started; its standard output and error go to `log`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        """Use `spawn`."""
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            self._process.send_signal(number)

    async def stop(self, clock: Clock, grace_s: float, gentle: int = _TERMINATE) -> int:
        """Ask it to end, wait `grace_s`, then kill it. Returns its return code."""
        self.signal(gentle)
        code = await self.wait(clock, grace_s)
        if code is None:
            self.signal(signal.SIGKILL)
            code = await self.wait(clock, 10.0)
        return -signal.SIGKILL if code is None else code

    async def wait(self, clock: Clock, seconds: float) -> int | None:
        """Wait until it ended, at most `seconds`; None when it still runs."""
        until = clock.monotonic_s() + seconds
        while self.returncode is None and clock.monotonic_s() < until:
            await clock.sleep(_POLL_S)
        return self.returncode

    def log_tail(self) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return ""

    def failure(self, what: str) -> EngineError:
        """An error that says what failed and shows the end of the log."""
        return EngineError(f"{self.name} {what}; see {self.log}\n{self.log_tail()}".rstrip())


def spawn(  # noqa: PLR0913 - each is one property of the process
    name: str,
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    *,
    die_with_parent: bool = True,
    groups: Sequence[Path] = (),
) -> Child:
    """Start a process in a session of its own. Raises EngineError when it cannot be started.

    `env` is added to our environment; `user` is a numeric user (and group) id to run as, which needs root; `groups` are
    the `cgroup.procs` files of control groups that it enters before its program begins.
    Call it from the main thread: the kernel ties `die_with_parent` to the thread that forked.
    """
    prepare = partial(_before_exec, groups, die_with_parent=die_with_parent)
    with log.open("ab") as out:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=prepare if die_with_parent or groups else None,  # noqa: PLW1509 - system calls, takes no lock
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            msg = f"{name} cannot be started: {error}"
            raise EngineError(msg) from error
    return Child(name, process, log)
