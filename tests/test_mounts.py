"""The kernel's mount table and unmounting, with mounts that this test serves itself, down to the protocol."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from namefs import mounts
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUEST = struct.Struct("=IIQQIIII")  # struct fuse_in_header of linux/fuse.h
_REPLY = struct.Struct("=IiQ")  # struct fuse_out_header
_INIT_REPLY = struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 1, 1, 65536, 1, 0, 0, 0, *[0] * 7)
_ATTRIBUTES = struct.pack("=QII6Q10I", 3600, 0, 0, 1, *[0] * 8, 0o40755, 2, *[0] * 5)
_ANSWERS = {26: _INIT_REPLY, 3: _ATTRIBUTES}  # FUSE_INIT, FUSE_GETATTR


class View:
    """A mount of namefs's type whose daemon is this process."""

    def __init__(self, path: Path, fstype: str = mounts.FSTYPE) -> None:
        self.path = str(path)
        self._device = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"namefs", os.fsencode(path), fstype.encode(), 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount(2)", self.path)

    def serve(self) -> None:
        """Serves a directory, of which only the attributes can be had, until the mount is gone."""
        threading.Thread(target=self._serve).start()

    def _serve(self) -> None:
        # ENODEV is how the kernel says that the mount is gone, ECONNABORTED how it says why.
        gone = f"{os.strerror(errno.ENODEV)}|{os.strerror(errno.ECONNABORTED)}"
        with pytest.raises(OSError, match=gone):
            self._answer()

    def _answer(self) -> None:
        while True:
            request = os.read(self._device, 1 << 20)
            _, opcode, unique, *_ = _REQUEST.unpack_from(request)
            body, error = (_ANSWERS[opcode], 0) if opcode in _ANSWERS else (b"", -errno.ENOSYS)
            os.write(self._device, _REPLY.pack(_REPLY.size + len(body), error, unique) + body)

    def abort(self) -> None:
        """Has the kernel drop the connection, as when the daemon dies; needs the mount to be in use."""
        force = 1  # MNT_FORCE
        assert ctypes.CDLL(None).umount2(os.fsencode(self.path), force) != 0

    def die(self) -> None:
        if self._device >= 0:
            os.close(self._device)
            self._device = -1


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    path = tmp_path / "by name\\\n"
    path.mkdir()
    view = View(path)
    yield view
    unmount_all(view.path)
    view.die()


def unmount_all(path: str) -> None:
    """Unmounts whatever is mounted there, without trusting what `mounts.find` says."""
    with contextlib.suppress(NamefsError):
        while True:
            mounts.detach(path)


def test_a_mount_is_found_by_its_path_whatever_characters_that_has(view: View) -> None:
    found = mounts.find(view.path)
    assert found is not None
    assert (found.mountpoint, found.fstype, found.source) == (view.path, "fuse.namefs", "namefs")
    assert found.is_namefs


def test_a_mount_is_found_through_symlinks(view: View, tmp_path: Path) -> None:
    view.serve()
    (tmp_path / "parent").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(view.path)
    for path in (tmp_path / "parent" / os.path.basename(view.path), tmp_path / "itself"):
        found = mounts.find(str(path))
        assert found is not None
        assert found.mountpoint == view.path


def test_a_directory_in_or_above_a_mount_is_no_mount(view: View, tmp_path: Path) -> None:
    assert mounts.find(str(tmp_path)) is None
    assert mounts.find("/proc/self") is None


def test_another_file_system_is_no_view() -> None:
    found = mounts.find("/proc")
    assert found is not None
    assert not found.is_namefs


def test_of_two_mounts_at_one_place_the_upper_one_is_found(view: View, tmp_path: Path) -> None:
    under = mounts.find(view.path)
    upper = View(tmp_path / os.path.basename(view.path), "fuse.other")
    found = mounts.find(view.path)
    assert found is not None
    assert found.fstype == "fuse.other"
    mounts.detach(view.path)
    upper.die()
    assert mounts.find(view.path) == under


def test_a_mount_is_dead_when_its_daemon_is(view: View) -> None:
    view.serve()
    assert not mounts.is_dead(view.path)
    mounts.unmount(view.path)


def test_a_mount_is_dead_even_while_the_kernel_remembers_its_attributes(view: View) -> None:
    view.serve()
    user = os.open(view.path, os.O_PATH)
    try:
        os.stat(view.path)
        view.abort()
        os.stat(view.path)
        assert mounts.is_dead(view.path)
    finally:
        os.close(user)


def test_a_mount_whose_daemon_has_died_is_dead(view: View) -> None:
    view.die()
    assert mounts.is_dead(view.path)


def test_a_directory_that_is_not_mounted_is_not_dead(tmp_path: Path) -> None:
    assert not mounts.is_dead(str(tmp_path))
    assert not mounts.is_dead(str(tmp_path / "none"))


def test_unmounting_does_not_wait_for_the_daemon(view: View) -> None:
    mounts.unmount(view.path)
    assert mounts.find(view.path) is None


def test_a_dead_mount_can_be_unmounted(view: View) -> None:
    view.die()
    mounts.unmount(view.path)
    assert mounts.find(view.path) is None


def test_a_mount_in_use_can_only_be_detached(view: View) -> None:
    user = os.open(view.path, os.O_PATH)
    try:
        with pytest.raises(NamefsError, match="busy") as caught:
            mounts.unmount(view.path)
        assert caught.value.exit_code is ExitCode.MOUNT_FAILED
        mounts.detach(view.path)
        assert mounts.find(view.path) is None
    finally:
        os.close(user)
