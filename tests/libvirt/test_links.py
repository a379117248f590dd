"""``namefs links``: a tree of symlinks to the files of real guests, without daemon and mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs.errors import ExitCode
from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import libvirt

    from tests.lab.host import Host

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 20.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.fspath(PROJECT)}


@pytest.fixture
def config(libvirt_host: Host, tmp_path: Path) -> Path:
    file = tmp_path / "namefs.toml"
    file.write_text(
        f'mountpoint = "{tmp_path}/by-name"\njournal = "{tmp_path}/index.sqlite"\n'
        f'runtime-directory = "{tmp_path}/run"\n'
        f'[[connection]]\nuri = "{libvirt_host.uri}"\nroot = "{libvirt_host.root}"\n'.replace("\\\n", "\n")
    )
    return file


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


def links(config: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "namefs", "links", "--config", str(config), str(directory)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def times(directory: Path) -> dict[str, int]:
    return {os.fspath(path): path.lstat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_each_guest_is_a_directory_of_links_to_the_real_files(
    libvirt_host: Host, connection: libvirt.virConnect, config: Path, tmp_path: Path
) -> None:
    guests.make_disk(libvirt_host.images / "web.qcow2")
    disks = {"vda": "/var/lib/libvirt/images/web.qcow2"}
    domain = connection.defineXML(guests.xml("web", A, disks=disks))
    domain.create()
    tree = tmp_path / "tree"
    done = links(config, tree)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.readlink(tree / "web/disks/vda") == os.fspath(libvirt_host.images / "web.qcow2")
    assert (tree / "web/config.xml").read_text() == (
        libvirt_host.root / "etc/libvirt/qemu/web.xml"
    ).read_text()
    assert str(A) in (tree / "web/log/qemu.log").read_text()
    before = times(tree)
    assert links(config, tree).returncode == 0
    assert times(tree) == before, "a second run changes nothing"
    domain.destroy()
    domain.rename("shop")
    inode = (tree / "web").stat().st_ino
    assert links(config, tree).returncode == 0
    assert sorted(path.name for path in tree.iterdir()) == [".namefs-links", "shop"]
    assert (tree / "shop").stat().st_ino == inode, "it was renamed, not made anew"
    assert not os.path.lexists(tree / "shop/run/pid")


def test_what_namefs_did_not_make_is_left_alone(
    connection: libvirt.virConnect, config: Path, tmp_path: Path
) -> None:
    connection.defineXML(guests.xml("web", A))
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    done = links(config, other)
    assert done.returncode == ExitCode.USAGE
    assert "give it a directory of its own" in done.stderr
    tree = tmp_path / "tree"
    assert links(config, tree).returncode == 0
    (tree / "web/notes.txt").write_text("mine")
    (tree / "db").mkdir()
    connection.defineXML(guests.xml("db", B))
    done = links(config, tree)
    assert done.returncode == ExitCode.FILE_FAILED
    assert "in the way" in done.stderr
    assert (tree / "web/notes.txt").read_text() == "mine"


def test_a_tree_that_is_watched_follows_renames_and_swaps(
    connection: libvirt.virConnect, config: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    one, other = (connection.defineXML(guests.xml(name, uuid)) for name, uuid in (("web", A), ("db", B)))
    command = [
        sys.executable,
        "-m",
        "namefs",
        "links",
        "--watch",
        "--config",
        os.fspath(config),
        os.fspath(tree),
    ]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: (tree / "web").exists() and (tree / "db").exists(), SOON_S, "both are there")
        one.rename("shop")
        until(lambda: (tree / "shop").exists() and not (tree / "web").exists(), SOON_S, "it follows")
        other.undefine()
        until(lambda: not (tree / "db").exists(), SOON_S, "it is gone")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_without_libvirt_and_index_it_says_so(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("libvirt-sock", "nobody-sock"))
    done = links(config, tmp_path / "tree")
    assert done.returncode == ExitCode.LIBVIRT_UNREACHABLE
    assert done.stderr.count("namefs: ") == 1
