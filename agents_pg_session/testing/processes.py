"""Processes that a test starts: as whom they run, how they end, and on which port they listen."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["PATIENCE", "die_with_parent", "end", "free_port", "in_user_namespace", "namespace_works"]

#: Seconds a server may take to start, to end or to fall in step, on a slow and busy machine.
PATIENCE = 60

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal and wait for the end; who does not end in time is killed, and that is an error."""
    process.send_signal(how)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def namespace_works() -> bool:
    """Whether the kernel lets a process be somebody else in a namespace of its own."""
    try:
        return subprocess.run(["id", "-u"], preexec_fn=in_user_namespace, capture_output=True).stdout == b"1000\n"
    except subprocess.SubprocessError:
        return False


def in_user_namespace() -> None:
    """Become uid 1000 in a user namespace of one uid: for the child of a fork, before it starts a program."""
    uid, gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespaces here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")


def die_with_parent(become: Callable[[], None]) -> None:
    """Become somebody, who ends when the test run does, however that ends."""
    # What a shell starts in the background (`nohup make test &`) ignores these, and so would all that it starts.
    for ends_it in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(ends_it, signal.SIG_DFL)
    become()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def free_port() -> int:
    """A port below those that Linux hands to outgoing connections, so that none of them takes it before we do."""
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port on loopback")
