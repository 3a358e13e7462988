"""The disk is full: an append fails with our error, leaves nothing half written, and works again when there is room.

Two disks. A file that is `/dev/full` needs no privilege: the kernel refuses every write to it with ENOSPC, so the
server says what it says on a full disk, for one table. A small tmpfs in a mount namespace of the server's own is a disk
with everything on it, the log of transactions too, without which the server panics and goes down.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents_pg_session import SessionStore, StorageUnavailable
from agents_pg_session.testing.server import Server
from tests.faults.load import Load
from tests.faults.servers import migrated_server
from tests.items import assistant, user
from tests.sampling import in_turn
from tests.tally import Tally

BIG = [user("big"), assistant("".join(map(chr, range(0x4E00, 0x9FA0))) * 20)]  #: too long for a row: stored beside it
OVERFLOW_OF_ITEMS = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'agents.items'::regclass"
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


class SmallDisk:
    """A tmpfs of some megabytes in namespaces of its own: needs no privilege where the kernel allows user namespaces.

    Raises `OSError` where it does not. `enter` takes the calling process there.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        uid, gid = os.geteuid(), os.getegid()

        def mount() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "no user namespaces here")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")
            if libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={megabytes}m".encode()) != 0:
                raise OSError(ctypes.get_errno(), "mount is forbidden here")
            libc.prctl(1, signal.SIGKILL)

        try:
            self._keeper = subprocess.Popen(["sleep", "600"], preexec_fn=mount)
        except subprocess.SubprocessError as error:
            raise OSError("no small disk here: mounting one in a user namespace is forbidden") from error
        self._namespaces = [os.open(f"/proc/{self._keeper.pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]

    def enter(self) -> None:
        for namespace in self._namespaces:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the disk's namespace")

    def fill(self) -> None:
        """Leave no room."""
        self._there("cat /dev/zero > ballast")

    def free(self) -> None:
        """Make room."""
        self._there("rm ballast")

    def _there(self, command: str) -> None:
        subprocess.run(["sh", "-c", f"cd '{self.folder}'; {command}"], preexec_fn=self.enter, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        for namespace in self._namespaces:
            os.close(namespace)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_an_append_that_finds_no_room:
        in_turn(metafunc, "driver", "", {"": ()}, fixture=False)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server whose files a test may exchange."""
    server = migrated_server()
    yield server
    server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that is soon full; where the kernel forbids to mount one, the test with `/dev/full` is what there is."""
    try:
        disk = SmallDisk(tmp_path, 96)
    except OSError as error:
        pytest.skip(str(error))
    yield disk
    disk.close()


@pytest.fixture
def server_on_small_disk(small_disk: SmallDisk) -> Iterator[Server]:
    """A server with all its data there. It stays down after a panic, as one whose restart fails for want of room."""
    server = migrated_server(folder=small_disk.folder, become=small_disk.enter, settings={"restart_after_crash": "off"})
    yield server
    server.stop()


async def test_an_append_that_finds_no_room(
    own_server: Server, driver: str, new_id: Callable[[], str], tally: Tally
) -> None:
    """The server has no room for what an append brings: `StorageUnavailable` says so after the budget, nothing of it is
    there, what needs no room works on, and the same append works when there is room."""
    overflow = own_server.data / own_server.sql(OVERFLOW_OF_ITEMS)
    overflow.unlink()
    overflow.symlink_to("/dev/full")
    url = own_server.url.replace("postgresql://", f"postgresql+{driver}://")
    async with SessionStore.open(url, retry_for=0.5) as store:
        session = store.session(new_id())
        with pytest.raises(StorageUnavailable, match=r"53100.*No space left on device") as failure:
            await session.add_items(BIG)
        await session.add_items([user("small")])
        assert await session.get_items() == [user("small")]

        overflow.unlink()
        overflow.touch()
        own_server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )  # who has the full file open goes on with it
        await session.add_items(BIG)

        assert failure.value.sqlstate == "53100"
        assert await session.get_items() == [user("small"), *BIG]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    tally.add("Disk full", refused_for_want_of_room=1)


async def test_a_full_disk_and_a_panic(
    small_disk: SmallDisk, server_on_small_disk: Server, new_id: Callable[[], str], tally: Tally
) -> None:
    """The whole disk is full under load, first for tables, then for the log of transactions, which takes the server
    down: with room and a restart the writers go on, and what was acknowledged is there once and whole."""
    server, disk = server_on_small_disk, small_disk
    async with (
        SessionStore.open(server.url, retry_for=60) as patient,
        SessionStore.open(server.url, retry_for=0.3) as impatient,
        SessionStore.open(server.url, retry_for=1) as telling,
    ):
        async with Load([patient, impatient], [new_id() for _ in range(3)], writers=8) as load:
            await load.further(20)
            await asyncio.to_thread(disk.fill)
            with pytest.raises(StorageUnavailable, match=r"53100.*No space left on device"):
                await telling.session(new_id()).add_items(BIG)
            await asyncio.to_thread(disk.free)
            await load.further(20)
            await asyncio.to_thread(disk.fill)
            with contextlib.suppress(subprocess.CalledProcessError):
                while server.running:
                    await asyncio.to_thread(server.sql, "SELECT pg_switch_wal()")
            async with asyncio.timeout(60):
                while server.running:
                    await asyncio.sleep(0.05)
            await asyncio.to_thread(disk.free)
            await asyncio.to_thread(server.start)
            await load.further(20)
        assert patient.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    recount = await load.recount(server.url)

    tally.add("Disk full", panics=1, **recount.numbers)
    assert recount.faults == []
