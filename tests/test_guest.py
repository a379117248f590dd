"""What a guest's directory holds, over real files and an index that came about as a daemon's does."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namefs import logs
from namefs.applying import apply
from namefs.backing import Backing
from namefs.guest import Guest, Shelf, attributes_of
from namefs.index import Index
from namefs.layout.artefact import SUBDIRECTORIES, TOP
from namefs.layout.directories import Directories
from namefs.model import Disk, Domain, Key, Listed, Named, Observed
from namefs.view import guest_in
from tests.lab.opened import Opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from namefs.items import Item

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
B = UUID("6ac0e4f5-4b35-4d1c-9b0e-2d9a30bb7a54")


def run(uuid: UUID, lines: str = "") -> bytes:
    """What libvirt and QEMU write to a log between a start and a stop, shortened."""
    return (
        "2026-11-24 05:41:07.377+0000: starting up libvirt version: 9.0.0, hostname: host\n"
        "LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=web,debug-threads=on \\\n"
        f"-uuid {uuid} \\\n-msg timestamp=on\n{lines}"
        "2026-11-24 05:42:00.330+0000: shutting down, reason=destroyed\n"
    ).encode()


def qcow2(backing: bytes, *, offset: int = 104, size: int | None = None) -> bytes:
    """An image's header, as far as a backing file is named by it (QEMU, docs/interop/qcow2.txt)."""
    named = struct.pack(">4sIQI", b"QFI\xfb", 3, offset, len(backing) if size is None else size)
    return named.ljust(104, b"\0") + backing


class Desk:
    """A libvirt's directories, the index of its domains, and what is found of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shelf = Shelf(Backing("/nowhere/by-name"))
        self.index = Index()
        self.now_ns = 0
        for directory in ("etc/autostart", "run", "lib/save", "lib/nvram", "log", "swtpm-log", "swtpm"):
            (root / directory).mkdir(parents=True)
        self.other = root / "other"

    def places(self, connection: str) -> Directories:
        root = str(self.root if connection == "system" else self.other)
        return Directories(
            etc=f"{root}/etc",
            run=f"{root}/run",
            lib=f"{root}/lib",
            log=f"{root}/log",
            swtpm_log=f"{root}/swtpm-log",
            swtpm_state=f"{root}/swtpm",
            store=f"{root}/by-uuid",
            store_log=f"{root}/log-by-uuid",
        )

    def see(self, *seen: Observed | Listed) -> None:
        """As `projection` does it."""
        self.now_ns += 1
        before = self.index
        applied = apply(before, seen, self.now_ns)
        self.index = applied.index.marked(
            {
                (key, former.until_ns): self.shelf.measure(self.places(domain.connection), domain)
                for key, domain, former in applied.released
            }
        )

    def named(self, uuid: UUID, name: str | None, connection: str = "system") -> None:
        domain = None if name is None else Domain(uuid, name, connection)
        self.see(Observed(Key(uuid), connection, domain))

    def has(self, **facts: object) -> None:
        """A domain ``web`` with these facts."""
        self.see(Observed(Key(A), "system", Domain(A, "web", "system", **facts)))  # type: ignore[arg-type]

    def guest(self, uuid: UUID) -> Guest:
        guest = guest_in(self.index, Key(uuid), self.places)
        assert guest is not None
        return guest

    def items(self, uuid: UUID, subdir: bytes) -> dict[bytes, Item]:
        guest = self.guest(uuid)
        items = {item.entry: item for item in self.shelf.items(guest, subdir)}
        for entry, item in items.items():
            found = self.shelf.item(guest, subdir, entry)
            assert found is not None
            # Not ``info`` as a whole: reading a log updates its atime.
            assert replace(found, info=item.info) == item
        assert list(items) == sorted(items)
        assert (subdir in self.shelf.subdirectories(guest)) == bool(items and subdir)
        return items

    def text(self, uuid: UUID, entry: str, subdir: bytes = b"log") -> bytes | None:
        """What the view shows as the file's content, read piecemeal; None where there is no such file."""
        item = self.items(uuid, subdir).get(entry.encode())
        if item is None or item.target is not None:
            return None
        fd = self.shelf.open(item)
        try:
            read = b""
            while piece := self.shelf.read(self.guest(uuid), item, fd, len(read), 37):
                read += piece
            assert len(read) == item.size_bytes
            return read
        finally:
            os.close(fd)

    def texts(self, uuid: UUID) -> dict[str, bytes | None]:
        return {entry.decode(): self.text(uuid, entry.decode()) for entry in self.items(uuid, b"log")}

    def append(self, file: str, data: bytes) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(data)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def rotate(log: Path) -> None:
    """As virtlogd does (virrotatingfile.c)."""
    for number in (1, 0):
        if (old := log.with_name(f"{log.name}.{number}")).exists():
            old.rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.0"))


def test_a_log_of_one_domain_is_shown_whole(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", run(A) + run(A))
    assert desk.texts(A) == {"qemu.log": run(A) + run(A)}
    assert desk.items(A, b"log")[b"qemu.log"].extents is None


def test_an_empty_log_is_shown_empty(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", b"")
    assert desk.texts(A) == {"qemu.log": b""}


def test_after_a_rename_the_old_log_is_the_log_until_there_is_a_new_one(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log.0", run(A, "older\n"))
    desk.append("log/web.log", run(A))
    desk.named(A, "www")
    assert desk.texts(A) == {"qemu.log": run(A), "qemu.log.0": run(A, "older\n")}
    desk.append("log/www.log", run(A, "as www\n"))
    assert desk.texts(A) == {
        "qemu.log": run(A, "as www\n"),
        "qemu@web.log": run(A),
        "qemu@web.log.0": run(A, "older\n"),
    }


def test_two_domains_that_had_one_name_in_turn_have_their_own_lines_of_one_file(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", run(A, "first\n"))
    desk.named(A, "www")
    desk.named(B, "web")
    desk.append("log/web.log", run(B))
    desk.named(B, "db")
    desk.named(A, "web")
    desk.append("log/web.log", run(A, "second\n"))
    assert desk.text(A, "qemu.log") == run(A, "first\n") + run(A, "second\n")
    assert desk.text(B, "qemu.log") == run(B)
    assert desk.items(A, b"log")[b"qemu.log"].extents is not None


def test_a_log_that_is_open_shows_what_is_appended_for_its_domain_and_nothing_else(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", run(A))
    item = desk.items(A, b"log")[b"qemu.log"]
    fd = desk.shelf.open(item)
    try:
        desk.append("log/web.log", b"a line more\n")
        assert desk.shelf.read(desk.guest(A), item, fd, len(run(A)), 100) == b"a line more\n"
        desk.named(A, "www")
        desk.named(B, "web")
        desk.append("log/web.log", run(B))
        assert desk.shelf.read(desk.guest(A), item, fd, 0, 10000) == run(A) + b"a line more\n"
        assert desk.shelf.refreshed(desk.guest(A), item, fd).size_bytes == len(run(A) + b"a line more\n")
    finally:
        os.close(fd)


def test_a_start_is_shown_once_its_uuid_is_written(desk: Desk) -> None:
    desk.named(A, "web")
    begun, rest = run(A).split(b"-uuid")
    desk.append("log/web.log", run(A) + begun)
    assert desk.text(A, "qemu.log") == run(A)
    desk.append("log/web.log", b"-uuid" + rest)
    assert desk.text(A, "qemu.log") == run(A) + run(A)


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_a_rotated_log_without_a_start_goes_on_from_the_older_piece(desk: Desk, rotations: int) -> None:
    log = desk.root / "log/web.log"
    desk.named(A, "web")
    desk.append("log/web.log", run(A))
    desk.named(A, "www")
    desk.named(B, "web")
    desk.append("log/web.log", run(B))
    for number in range(rotations):
        rotate(log)
        desk.append("log/web.log", b"B's line %d\n" % number)
    assert desk.texts(A) == {f"qemu.log.{rotations - 1}": run(A)}
    expected = {"qemu.log": b"B's line %d\n" % (rotations - 1), f"qemu.log.{rotations - 1}": run(B)}
    expected |= {
        f"qemu.log.{number}": b"B's line %d\n" % (rotations - 2 - number) for number in range(rotations - 1)
    }
    assert desk.texts(B) == expected


def test_older_pieces_tell_whose_lines_are_where_the_index_does_not(desk: Desk) -> None:
    desk.named(A, "web")
    desk.named(A, "www")
    desk.named(B, "web")
    # All while namefs was not running: it has no marks of these files.
    desk.append("log/web.log.2", run(A))
    desk.append("log/web.log.1", b"A's line\n")
    desk.append("log/web.log.0", b"A's last line\n" + run(B))
    desk.append("log/web.log", b"B's line\n" + run(B))
    assert desk.texts(A) == {
        "qemu.log.2": run(A),
        "qemu.log.1": b"A's line\n",
        "qemu.log.0": b"A's last line\n",
    }
    assert desk.texts(B) == {"qemu.log": b"B's line\n" + run(B), "qemu.log.0": run(B)}


def test_a_packed_older_piece_tells_nothing(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log.0", b"A's line\n")
    desk.append("log/web.log.1.gz", b"\x1f\x8b")
    assert desk.texts(A) == {"qemu.log.0": b"A's line\n", "qemu.log.1.gz": b"\x1f\x8b"}


def test_lines_without_a_start_and_older_piece_are_of_who_had_the_name_then(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", b"A's line\n")
    desk.named(A, "www")
    desk.named(B, "web")
    desk.append("log/web.log", run(B))
    assert desk.texts(A) == {"qemu.log": b"A's line\n"}
    assert desk.texts(B) == {"qemu.log": run(B)}


@pytest.mark.parametrize("lines", ["", "a longer run than the one before was\n" * 20])
def test_a_log_that_is_cut_short_and_written_anew_is_searched_anew(desk: Desk, lines: str) -> None:
    desk.named(A, "web")
    desk.append("log/web.log", b"no start\n" + run(A) + run(A))
    assert desk.text(A, "qemu.log") == b"no start\n" + run(A) + run(A)
    desk.named(A, "www")
    desk.named(B, "web")
    os.truncate(desk.root / "log/web.log", 0)
    desk.append("log/web.log", run(B, lines))
    assert desk.texts(A) == {}
    assert desk.texts(B) == {"qemu.log": run(B, lines)}


def test_lines_of_a_swtpm_log_are_of_who_had_the_name_when_they_were_written(desk: Desk) -> None:
    log = "swtpm-log/web-swtpm.log"
    desk.named(A, "web")
    desk.append(log, b"A's\n")
    desk.named(A, "www")
    desk.named(B, "web")
    assert desk.texts(B) == {}
    desk.append(log, b"B's line\n")
    desk.append("swtpm-log/www-swtpm.log", b"A's new\n")
    assert desk.texts(A) == {"swtpm.log": b"A's new\n", "swtpm@web.log": b"A's\n"}
    assert desk.texts(B) == {"swtpm.log": b"B's line\n"}
    desk.named(B, None)
    desk.named(A, "web")
    desk.append(log, b"A's again\n")
    assert desk.texts(A)["swtpm.log"] == b"A's\nA's again\n"


def test_a_swtpm_log_that_was_cut_short_is_of_who_has_the_name(desk: Desk) -> None:
    log = "swtpm-log/web-swtpm.log"
    desk.named(A, "web")
    desk.append(log, b"A's line, and some more of them\n")
    desk.named(A, "www")
    desk.named(B, "web")
    os.truncate(desk.root / log, 0)
    desk.append(log, b"B's\n")
    assert desk.texts(B) == {"swtpm.log": b"B's\n"}
    assert desk.texts(A) == {}


def test_two_connections_with_a_domain_of_one_name_each_have_their_own_logs(desk: Desk) -> None:
    desk.named(A, "web")
    desk.named(B, "web", "embed")
    for log in ("log/web.log", "swtpm-log/web-swtpm.log", "log/web-fs0-virtiofsd.log"):
        desk.append(log, b"A's\n")
        desk.append(f"other/{log}", b"B's\n")
    entries = ("qemu.log", "swtpm.log", "virtiofsd-fs0.log")
    assert desk.texts(A) == dict.fromkeys(entries, b"A's\n")
    assert desk.texts(B) == dict.fromkeys(entries, b"B's\n")


def test_packed_logs_are_told_apart_by_who_had_the_name(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("log/web.log.1.gz", b"\x1f\x8bA's")
    desk.named(A, "www")
    desk.named(B, "web")
    desk.append("log/web.log.2.gz", b"\x1f\x8bB's")
    assert desk.texts(A) == {"qemu.log.1.gz": b"\x1f\x8bA's"}
    assert desk.texts(B) == {"qemu.log.2.gz": b"\x1f\x8bB's"}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from([run(A), run(B), run(A)[:120], run(B)[120:], b"\n", b"x" * 300, b"\n" + run(A)]),
            st.binary(max_size=40),
        ),
        max_size=8,
    )
)
def test_a_log_that_grows_is_searched_to_the_same_end_as_one_that_is_read_at_once(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    tmp_path = tmp_path / os.urandom(8).hex()
    desk = Desk(tmp_path)
    desk.named(A, "web")
    desk.append("log/web.log", b"")
    written = b""
    for piece in pieces:
        desk.append("log/web.log", piece)
        written += piece
        extents = logs.owned(logs.starts(written), A, A)
        expected = b"".join(written[begin:end] for begin, end in extents)
        shown = desk.text(A, "qemu.log")
        assert (shown or b"") == expected
        assert (shown is not None) == bool(extents)


@pytest.mark.parametrize("name", ["..", "a.b[c]{0}", "-x", "two\nlines", "æ\udcff", "a b*", "x" * 200])
def test_files_of_any_name_are_found(desk: Desk, name: str) -> None:
    desk.named(A, name)
    desk.append(f"etc/{name}.xml", b"<domain/>")
    desk.append(f"log/{name}.log", run(A))
    if name != "..":
        desk.append(f"lib/snapshot/{name}/s.xml", b"<domainsnapshot/>")
    assert desk.text(A, "config.xml", TOP) == b"<domain/>"
    assert desk.text(A, "qemu.log") == run(A)
    assert (desk.text(A, "s.xml", b"snapshots") is None) == (name == "..")


def test_a_name_of_dots_leads_nowhere(desk: Desk) -> None:
    desk.named(A, "..")
    desk.append("lib/not-a-snapshot.xml", b"secret")
    desk.append("lib/snapshot/web/not-its-own.xml", b"secret")
    assert desk.items(A, b"snapshots") == {}


@pytest.mark.parametrize("at", ["lib/snapshot/web", "lib/snapshot"])
def test_a_symlink_in_the_place_of_snapshots_shows_nothing(desk: Desk, at: str) -> None:
    desk.named(A, "web")
    desk.append("elsewhere/web/secret.xml", b"secret")
    desk.append("elsewhere/secret.xml", b"secret")
    place = desk.root / at
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(desk.root / "elsewhere")
    assert desk.items(A, b"snapshots") == {}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_symlink(path: Path) -> None:
    path.symlink_to("/nowhere")


def make_socket(path: Path) -> None:
    # By a short way: a socket's path has at most 107 bytes.
    at = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{at}/{path.name}")
    finally:
        os.close(at)


def make_device(path: Path) -> None:
    os.mknod(path, 0o20600, os.makedev(1, 5))


@pytest.mark.parametrize("make", [make_fifo, make_symlink, make_dangling_symlink, make_socket, make_device])
@pytest.mark.parametrize(
    ("file", "subdir", "entry"),
    [
        ("log/web.log", b"log", b"qemu.log"),
        ("swtpm-log/web-swtpm.log", b"log", b"swtpm.log"),
        ("etc/web.xml", TOP, b"config.xml"),
        ("lib/save/web.save", b"save", b"managed.save"),
        (f"swtpm/{A}/tpm2/state", b"tpm", b"state"),
    ],
)
def test_what_is_no_regular_file_is_a_symlink_to_it_and_not_opened(
    desk: Desk, make: Callable[[Path], None], file: str, subdir: bytes, entry: bytes
) -> None:
    desk.named(A, "web")
    path = desk.root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    with Opened() as opened:
        if not path.is_symlink():
            opened.watch(path)
        items = desk.items(A, subdir)
        assert {at: item.target for at, item in items.items()} == {entry: os.fsencode(path)}
        assert desk.shelf.measure(desk.places("system"), desk.guest(A).record.domain) is not None
        with pytest.raises(OSError, match="not a regular file"):
            desk.shelf.open(items[entry])
        assert opened.count() == 0


def test_a_directory_in_a_files_place_is_not_shown(desk: Desk) -> None:
    desk.named(A, "web")
    for directory in ("etc/web.xml", "log/web.log", "lib/save/web.save"):
        (desk.root / directory).mkdir()
    assert desk.items(A, TOP) == desk.items(A, b"log") == desk.items(A, b"save") == {}
    assert desk.shelf.subdirectories(desk.guest(A)) == []


def test_a_file_that_was_replaced_since_it_was_looked_up_is_not_opened_in_its_stead(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("etc/web.xml", b"old")
    item = desk.items(A, TOP)[b"config.xml"]
    desk.append("etc/web.xml.new", b"new")
    (desk.root / "etc/web.xml.new").rename(desk.root / "etc/web.xml")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        desk.shelf.open(item)
    assert len(os.listdir("/proc/self/fd")) == before
    assert desk.text(A, "config.xml", TOP) == b"new"


def test_a_pid_file_is_shown_and_the_process_that_it_names(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("run/web.pid", b"%d\n" % os.getpid())
    items = desk.items(A, b"run")
    assert items[b"process"].target == b"/proc/%d" % os.getpid()
    assert desk.text(A, "pid", b"run") == b"%d\n" % os.getpid()


@pytest.mark.parametrize(
    "pid",
    [
        b"",
        b"\n",
        b"0",
        b"-1",
        b"self",
        b"1/../self",
        b"../etc",
        b"9" * 31,
        b"9" * 6000,
        b"1 2",
        b"\xff",
        b"\0",
    ],
)
def test_a_pid_file_that_names_no_process_is_shown_alone(desk: Desk, pid: bytes) -> None:
    desk.named(A, "web")
    desk.append("run/web.pid", pid)
    assert list(desk.items(A, b"run")) == [b"pid"]
    assert desk.text(A, "pid", b"run") == pid


def status(uuid: UUID, monitor: object) -> bytes:
    return (
        f"<domstatus state='running' pid='1'><monitor path='{monitor}' type='unix'/>"
        f"<domain type='kvm'><name>web</name><uuid>{uuid}</uuid></domain></domstatus>"
    ).encode()


def test_the_monitor_is_where_the_domains_own_status_says(desk: Desk) -> None:
    desk.named(A, "web")
    monitor = desk.root / "lib/monitor.sock"
    desk.append("run/web.xml", status(A, monitor))
    assert desk.items(A, b"sockets") == {}, "there is none yet"
    make_socket(monitor)
    assert desk.items(A, b"sockets")[b"monitor"].target == os.fsencode(monitor)
    (desk.root / "run/web.xml").write_bytes(status(B, monitor))
    assert desk.items(A, b"sockets") == {}


@pytest.mark.parametrize("garbage", [b"", b"<domstatus", b"\xff\xfe", b"<!DOCTYPE a><domstatus/>", b"<a/>"])
def test_a_status_that_cannot_be_read_names_no_monitor(desk: Desk, garbage: bytes) -> None:
    desk.named(A, "web")
    desk.append("run/web.xml", garbage)
    assert desk.items(A, b"sockets") == {}
    assert desk.text(A, "status.xml", TOP) == garbage


def chain_of(desk: Desk) -> list[str]:
    """The disk ``vda``'s backing images, by the names of their files."""
    items = desk.items(A, b"disks")
    assert items.pop(b"vda").target == os.fsencode(desk.root / "images/top")
    assert list(items) == sorted(b"vda.backing%d" % number for number in range(1, len(items) + 1))
    targets = [items[b"vda.backing%d" % number].target or b"" for number in range(1, len(items) + 1)]
    return [os.path.relpath(os.fsdecode(target), desk.root / "images") for target in targets]


def with_disk(desk: Desk, **files: bytes) -> None:
    for name, content in files.items():
        desk.append(f"images/{name}", content)
    desk.has(disks=(Disk("vda", str(desk.root / "images/top"), "qcow2"),))


def test_uefi_variables_left_under_a_former_name_are_shown_until_the_name_is_anothers(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("lib/nvram/web_VARS.fd", b"variables")
    desk.named(A, "shop")
    assert desk.text(A, "VARS@web.fd", b"nvram") == b"variables"
    desk.append("lib/nvram/shop_VARS.fd", b"fresh")
    assert desk.text(A, "VARS.fd", b"nvram") == b"fresh"
    desk.named(B, "web")
    assert list(desk.items(A, b"nvram")) == [b"VARS.fd"]
    assert desk.text(B, "VARS.fd", b"nvram") == b"variables"


def test_uefi_variables_that_kept_their_old_path_are_shown_once(desk: Desk) -> None:
    path = str(desk.root / "lib/nvram/web_VARS.fd")
    desk.see(Observed(Key(A), "system", Domain(A, "web", "system", nvram=path)))
    desk.append("lib/nvram/web_VARS.fd", b"variables")
    desk.see(Observed(Key(A), "system", Domain(A, "shop", "system", nvram=path)))
    assert list(desk.items(A, b"nvram")) == [b"VARS.fd"]


def test_a_chain_of_images_is_followed_by_their_headers(desk: Desk) -> None:
    absolute = os.fsencode(desk.root / "images/base")
    with_disk(desk, top=qcow2(b"sub/../middle"), middle=qcow2(absolute), base=qcow2(b""))
    assert chain_of(desk) == ["middle", "base"]


def test_a_relative_backing_image_is_relative_to_the_image_that_names_it(desk: Desk) -> None:
    with_disk(desk, top=qcow2(b"deep/middle"))
    desk.append("images/deep/middle", qcow2(b"base"))
    assert chain_of(desk) == ["deep/middle", "deep/base"]


def test_what_libvirt_says_of_a_chain_is_believed_and_no_header_read(desk: Desk) -> None:
    desk.append("images/top", qcow2(b"from-the-header"))
    top, base = str(desk.root / "images/top"), str(desk.root / "images/base")
    desk.has(disks=(Disk("vda", top, "qcow2", (base,)),))
    assert chain_of(desk) == ["base"]
    desk.has(disks=(Disk("vda", top, "qcow2", ()),))
    assert chain_of(desk) == []


def test_a_header_in_a_raw_image_is_the_guests_own_business(desk: Desk) -> None:
    with_disk(desk, top=qcow2(b"middle"))
    desk.has(disks=(Disk("vda", str(desk.root / "images/top"), "raw"),))
    assert chain_of(desk) == []


def test_a_chain_that_returns_to_itself_ends(desk: Desk) -> None:
    with_disk(desk, top=qcow2(b"middle"), middle=qcow2(b"base"), base=qcow2(b"middle"))
    assert chain_of(desk) == ["middle", "base"]
    (desk.root / "images/middle").write_bytes(qcow2(b"top"))
    assert chain_of(desk) == ["middle"]


def test_a_chain_without_an_end_is_cut(desk: Desk) -> None:
    with_disk(
        desk,
        top=qcow2(b"image0"),
        **{f"image{number}": qcow2(b"image%d" % (number + 1)) for number in range(100)},
    )
    assert 50 < len(chain_of(desk)) < 100


@pytest.mark.parametrize(
    "header",
    [
        b"",
        qcow2(b"middle")[:10],
        qcow2(b"middle")[:20],
        qcow2(b"middle").replace(b"QFI\xfb", b"QFI\0"),
        qcow2(b"middle", offset=2**64 - 1),
        qcow2(b"middle", offset=2**63),
        qcow2(b"middle", offset=2**40),
        qcow2(b"middle", size=2**32 - 1),
        qcow2(b"middle" * 200),
        qcow2(b"mid\0dle"),
        qcow2(b"\0"),
        qcow2(b"json:{}"),
        qcow2(b"nbd://host/export"),
        qcow2(b"nbd:unix:/run/s"),
    ],
)
def test_a_header_that_names_no_file_ends_the_chain(desk: Desk, header: bytes) -> None:
    with_disk(desk, top=header, middle=b"")
    assert chain_of(desk) == []


@pytest.mark.parametrize("make", [make_fifo, make_symlink, make_device])
def test_a_backing_image_that_is_no_regular_file_is_shown_and_not_opened(
    desk: Desk, make: Callable[[Path], None]
) -> None:
    with_disk(desk, top=qcow2(b"middle"))
    make(desk.root / "images/middle")
    with Opened() as opened:
        if make is not make_symlink:
            opened.watch(desk.root / "images/middle")
        assert chain_of(desk) == ["middle"]
        assert opened.count() == 0


def test_former_names_are_told_once_each_without_the_present_one(desk: Desk) -> None:
    for name in ("one", "two", "one", "three", "two"):
        desk.named(A, name)
    assert desk.guest(A).former_names == ("one", "three")
    assert attributes_of(desk.guest(A)) == {
        b"user.namefs.uuid": str(A).encode(),
        b"user.namefs.name": b"two",
        b"user.namefs.state": b"no state",
        b"user.namefs.connection": b"system",
        b"user.namefs.former_names": b"one\nthree",
    }


def test_a_domain_without_files_on_this_machine_has_none(desk: Desk) -> None:
    desk.named(A, "web")
    guest = guest_in(desk.index, Key(A), lambda _connection: None)
    assert guest is not None
    assert [desk.shelf.items(guest, subdir) for subdir in (TOP, *SUBDIRECTORIES)] == [[]] * 10
    assert desk.shelf.subdirectories(guest) == []
    assert desk.shelf.item(guest, TOP, b"config.xml") is None


def test_extended_attributes_are_the_real_files(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("etc/web.xml", b"<domain/>")
    os.setxattr(desk.root / "etc/web.xml", "user.note", b"kept")
    item = desk.items(A, TOP)[b"config.xml"]
    assert desk.shelf.xattr(item, b"user.note") == b"kept"
    assert desk.shelf.xattr(item, b"user.other") is None
    assert b"user.note" in desk.shelf.xattrs(item)


def test_a_subdirectory_can_be_listed_by_no_more_than_its_files_directory(desk: Desk) -> None:
    desk.named(A, "web")
    desk.append("lib/snapshot/web/s.xml", b"<domainsnapshot/>")
    directory = desk.root / "lib/snapshot/web"
    os.chown(directory, 1234, 5678)
    directory.chmod(0o750)
    (desk.root / "lib").chmod(0o711)
    mode, uid, gid = desk.shelf.directory_mode(desk.guest(A), b"snapshots")
    assert (uid, gid) == (1234, 5678)
    assert mode & 0o7 == 0
    assert mode & 0o222 == 0


def test_libvirts_own_log_is_not_hidden_by_another_of_its_entry(desk: Desk) -> None:
    desk.append("log/web.log", run(A))
    desk.append("logs/console", b"console\n")
    desk.has(logs=(Named("qemu", str(desk.root / "logs/console")),))
    assert desk.texts(A) == {"qemu.log": run(A)}


def test_explicit_logs_and_their_rotations_are_shown_whole(desk: Desk) -> None:
    desk.has(logs=(Named("serial0", str(desk.root / "logs/console")),))
    for suffix in ("", ".0", ".1.gz", "-20261124.gz"):
        desk.append(f"logs/console{suffix}", run(B))
    desk.append("logs/console.old", b"no rotation")
    assert desk.texts(A) == {f"serial0.log{suffix}": run(B) for suffix in ("", ".0", ".1.gz", "-20261124.gz")}
