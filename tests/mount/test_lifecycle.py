"""Starting and ending: when namefs says that it is ready, what it refuses, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from namefs.errors import ExitCode
from tests.lab.mounted import NAMEFS, TIMEOUT_S, Mounted, is_mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.lab.host import Host

NO_GUESTS = "test:///default"


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """namefs over libvirt's test driver, in whose connection there is one guest, ``test``."""
    mounted = Mounted([(NO_GUESTS, None)])
    try:
        mounted.start()
        yield mounted
    finally:
        mounted.close()


def namefs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which a daemon that starts would not come to."""
    command = [*NAMEFS, *(os.fspath(argument) for argument in arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)


def refused(done: subprocess.CompletedProcess[str], code: ExitCode, *words: str | Path) -> None:
    """Check that a command ended with this code and one line that holds these words."""
    assert done.returncode == code, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("namefs: ")
    for word in words:
        assert os.fspath(word) in message


def test_ready_is_said_when_the_mount_answers(mounted: Mounted) -> None:
    # `Mounted.start` has returned upon READY=1.
    assert is_mounted(mounted.path)
    assert os.statvfs(mounted.path).f_namemax == 255
    until(lambda: mounted.names() == ["test"], TIMEOUT_S, "the test driver's guest is there")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_it_with_0(mounted: Mounted, number: signal.Signals) -> None:
    os.kill(mounted.pid, number)
    assert mounted.ended() == 0
    assert not is_mounted(mounted.path)
    assert mounted.names() == []


def test_it_ends_with_0_while_files_in_the_view_are_open(mounted: Mounted) -> None:
    directory = os.open(mounted.path, os.O_RDONLY)
    try:
        os.kill(mounted.pid, signal.SIGTERM)
        assert mounted.ended() == 0
        assert not is_mounted(mounted.path)
    finally:
        os.close(directory)


def test_umount_ends_the_daemon(mounted: Mounted) -> None:
    done = namefs("umount", "--config", mounted.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert mounted.ended() == 0
    assert not is_mounted(mounted.path)


def test_umount_of_a_mount_in_use_fails_and_leaves_it(mounted: Mounted) -> None:
    directory = os.open(mounted.path, os.O_RDONLY)
    try:
        refused(namefs("umount", mounted.path), ExitCode.MOUNT_FAILED, mounted.path, "busy")
        assert os.statvfs(mounted.path).f_namemax == 255
    finally:
        os.close(directory)


def test_umount_detaches_a_dead_mount_even_if_it_is_in_use(mounted: Mounted) -> None:
    directory = os.open(mounted.path, os.O_RDONLY)
    try:
        mounted.kill()
        assert namefs("umount", mounted.path).returncode == 0
        assert not is_mounted(mounted.path)
    finally:
        os.close(directory)


def test_umount_of_what_is_no_view_fails(tmp_path: Path) -> None:
    refused(namefs("umount", tmp_path), ExitCode.MOUNT_FAILED, tmp_path, "nothing is mounted")
    refused(namefs("umount", "/proc"), ExitCode.MOUNT_FAILED, "/proc", "not namefs")


def test_a_dead_mount_is_taken_over(mounted: Mounted) -> None:
    directory = os.open(mounted.path, os.O_RDONLY)
    try:
        mounted.kill()
        assert is_mounted(mounted.path)
        mounted.start()
        until(lambda: mounted.names() == ["test"], TIMEOUT_S, "the view is back")
    finally:
        os.close(directory)


def test_a_second_daemon_with_the_same_runtime_directory_is_refused(mounted: Mounted, tmp_path: Path) -> None:
    done = namefs("mount", tmp_path, "--config", mounted.config)
    refused(done, ExitCode.DAEMON_RUNNING, mounted.runtime_directory)
    assert not is_mounted(tmp_path)
    assert os.statvfs(mounted.path).f_namemax == 255


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration file of its own paths; takes the mount point and further lines."""

    def write(mountpoint: Path, lines: Sequence[str] = (f'uri = "{NO_GUESTS}"',)) -> Path:
        config = tmp_path / "namefs.toml"
        head = [
            f'mountpoint = "{mountpoint}"',
            f'journal = "{tmp_path}/index.sqlite"',
            f'runtime-directory = "{tmp_path}/run"',
        ]
        config.write_text("\n".join([*head, "[[connection]]", *lines]))
        return config

    return write


def test_a_place_where_namefs_is_mounted_already_is_refused(
    mounted: Mounted, settings: Callable[..., Path]
) -> None:
    done = namefs("mount", "--config", settings(mounted.path))
    refused(done, ExitCode.MOUNT_FAILED, mounted.path, "is mounted")
    assert os.statvfs(mounted.path).f_namemax == 255


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path, settings: Callable[..., Path]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").touch()
    done = namefs("mount", "--config", settings(place))
    refused(done, ExitCode.MOUNT_FAILED, place, "not empty")
    assert not is_mounted(place)


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, settings: Callable[..., Path]) -> None:
    place = tmp_path / "place"
    place.touch()
    refused(namefs("mount", "--config", settings(place)), ExitCode.MOUNT_FAILED, place)


@pytest.mark.parametrize("below", ["var/lib/libvirt/qemu", "var/lib/libvirt/qemu/by-name", "var/lib", ""])
@pytest.mark.parametrize("link", [False, True])
def test_a_place_inside_or_above_what_is_served_is_refused(
    libvirt_host: Host, tmp_path: Path, settings: Callable[..., Path], below: str, link: bool
) -> None:
    place = libvirt_host.root / below
    if link:
        (tmp_path / "link").symlink_to(place)
        place = tmp_path / "link"
    config = settings(place, [f'uri = "{libvirt_host.uri}"', f'root = "{libvirt_host.root}"'])
    refused(namefs("mount", "--config", config), ExitCode.MOUNT_FAILED, place)
    assert not is_mounted(place)
    assert not (libvirt_host.root / "var/lib/libvirt/qemu/by-name").exists()


def test_a_place_beside_what_is_served_is_made_and_mounted(
    libvirt_host: Host, mount_namefs: Callable[..., Mounted]
) -> None:
    # The default, by-name in /var/lib/libvirt, is such a place; and the control of the test above.
    mounted = mount_namefs()
    mounted.terminate()
    place = libvirt_host.root / "var/lib/libvirt/by-name"
    mounted.path = place
    mounted.start()
    try:
        assert is_mounted(place)
    finally:
        mounted.terminate()
        place.rmdir()
