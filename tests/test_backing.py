"""Files behind the view: found without being led astray, never easier to get at than by their own path."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namefs.backing import Backing, Guard, effective_mode
from tests.lab.opened import Opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OTHER_UID = 12345

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)


@pytest.fixture
def backing() -> Backing:
    return Backing("/nowhere/by-name")


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def reached(backing: Backing, base: Path | str, *below: bytes) -> str | None:
    """The path at which the walk arrives."""
    with no_descriptor_left(), backing.directory(str(base), below) as directory:
        if directory is None:
            return None
        assert os.fstat(directory.fd) == directory.info
        assert os.path.samefile(f"/proc/self/fd/{directory.fd}", directory.path)
        return directory.path


def test_a_directory_is_reached_by_base_and_below(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "lib/snapshot/web").mkdir(parents=True)
    assert reached(backing, tmp_path / "lib", b"snapshot", b"web") == str(tmp_path / "lib/snapshot/web")
    assert reached(backing, "/") == "/"
    assert reached(backing, f"{tmp_path}//lib/./snapshot/") == str(tmp_path / "lib/snapshot")


@pytest.mark.parametrize(
    "below", [(b"..",), (b".",), (b"snapshot", b".."), (b"a/b",), (b"../etc",), (b"none",)]
)
def test_no_entry_leads_anywhere_but_down(backing: Backing, tmp_path: Path, below: tuple[bytes, ...]) -> None:
    (tmp_path / "lib/snapshot").mkdir(parents=True)
    (tmp_path / "lib/a/b").mkdir(parents=True)
    assert reached(backing, tmp_path / "lib", *below) is None


@pytest.mark.parametrize("base", ["", "lib", "./lib", "/..", "/proc/../etc"])
def test_a_base_is_absolute_and_has_no_dots(backing: Backing, base: str) -> None:
    assert reached(backing, base) is None


def test_symlinks_of_roots_are_followed_on_the_way_to_a_base(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "real/images").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("real")
    (tmp_path / "up").symlink_to("../" + tmp_path.name + "/absolute")
    for link in ("absolute", "relative", "up"):
        assert reached(backing, tmp_path / link / "images") == str(tmp_path / "real/images")
        assert reached(backing, tmp_path / link, b"images") == str(tmp_path / "real/images")


def test_no_symlink_is_followed_below_a_base(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert reached(backing, tmp_path, b"link") is None
    # Not even when one on the way to the base was.
    (tmp_path / "real/deeper").symlink_to(tmp_path)
    assert reached(backing, tmp_path / "link", b"deeper") is None


def owned_by_another(link: Path) -> None:
    os.chown(link, OTHER_UID, 0, follow_symlinks=False)


def in_anothers_directory(link: Path) -> None:
    os.chown(link.parent, OTHER_UID, 0)


def in_a_directory_of_a_groups(link: Path) -> None:
    link.parent.chmod(0o775)


def in_a_directory_of_everyones(link: Path) -> None:
    link.parent.chmod(0o1777)


@pytest.mark.parametrize(
    "spoil",
    [owned_by_another, in_anothers_directory, in_a_directory_of_a_groups, in_a_directory_of_everyones],
)
def test_a_symlink_that_others_could_have_made_is_not_followed(
    backing: Backing, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    link = tmp_path / "links/link"
    link.parent.mkdir()
    link.symlink_to("/etc")
    assert reached(backing, link) == "/etc"
    spoil(link)
    assert reached(backing, link) is None


def test_a_symlink_is_distrusted_in_the_middle_of_a_chain_too(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/link").symlink_to("/etc")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs/link")
    assert reached(backing, tmp_path / "ours") == "/etc"
    os.chown(tmp_path / "theirs", OTHER_UID, 0)
    assert reached(backing, tmp_path / "ours") is None


def test_symlinks_that_lead_in_a_circle_end(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "self").symlink_to("self/self")
    assert reached(backing, tmp_path / "one") is None
    assert reached(backing, tmp_path / "self") is None


def test_as_many_symlinks_are_followed_as_the_kernel_does(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for number in range(1, 42):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    for number in (40, 41):
        try:
            expected: str | None = str((tmp_path / str(number)).resolve(strict=True))
            os.stat(tmp_path / str(number))
        except OSError:
            expected = None
        assert reached(backing, tmp_path / str(number)) == expected
    assert expected is None


def test_a_file_in_a_directorys_place_is_no_directory(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo"):
        assert reached(backing, tmp_path / name) is None
        assert reached(backing, tmp_path / name / "below") is None
        assert reached(backing, tmp_path, name.encode()) is None


def test_what_fails_for_another_reason_is_not_taken_for_absent(backing: Backing, tmp_path: Path) -> None:
    with no_descriptor_left(), pytest.raises(OSError, match="too long"):
        reached(backing, tmp_path, b"x" * 256)


def test_the_mount_point_is_never_looked_into(tmp_path: Path) -> None:
    mountpoint = tmp_path / "by-name"
    (mountpoint / "web").mkdir(parents=True)
    (tmp_path / "by-name2/web").mkdir(parents=True)
    (tmp_path / "link").symlink_to(mountpoint)
    (tmp_path / "link-below").symlink_to(mountpoint / "web")
    backing = Backing(f"{mountpoint}/")
    with Opened() as opened:
        opened.watch(mountpoint)
        assert reached(backing, mountpoint) is None
        assert reached(backing, mountpoint / "web") is None
        assert reached(backing, tmp_path, b"by-name") is None
        assert reached(backing, tmp_path, b"by-name", b"web") is None
        assert reached(backing, tmp_path / "link") is None
        assert reached(backing, tmp_path / "link-below") is None
        assert reached(backing, f"{tmp_path}//by-name") is None
        assert opened.count() == 0
    assert reached(backing, tmp_path / "by-name2/web") == str(tmp_path / "by-name2/web")


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def make_device(path: Path) -> None:
    os.mknod(path, 0o20600, os.makedev(1, 5))


@pytest.mark.parametrize("make", [make_directory, make_fifo, make_symlink, make_socket, make_device])
def test_nothing_but_a_regular_file_is_opened(
    backing: Backing, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "log")
    with backing.directory(str(tmp_path)) as directory, Opened() as opened:
        assert directory is not None
        if make is not make_symlink:
            opened.watch(tmp_path / "log")
        with no_descriptor_left(), pytest.raises(OSError, match="not a regular file"):
            backing.open(directory, b"log")
        assert backing.read_small(directory, b"log") is None
        assert opened.count() == 0
        assert backing.stat(directory, b"log") == os.lstat(tmp_path / "log")


def test_a_regular_file_is_opened_for_reading_alone(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"line\n")
    with backing.directory(str(tmp_path)) as directory:
        assert directory is not None
        fd = backing.open(directory, b"log")
        try:
            assert os.pread(fd, 10, 0) == b"line\n"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(fd, b"x")
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
        with pytest.raises(FileNotFoundError):
            backing.open(directory, b"none")
        assert backing.stat(directory, b"none") is None


def test_a_small_file_is_read_up_to_its_limit(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "pid").write_bytes(b"12345")
    with backing.directory(str(tmp_path)) as directory:
        assert directory is not None
        assert backing.read_small(directory, b"pid") == b"12345"
        assert backing.read_small(directory, b"pid", 5) == b"12345"
        assert backing.read_small(directory, b"pid", 4) is None
        assert backing.read_small(directory, b"none") is None


entries = st.sets(
    st.binary(min_size=1, max_size=4).filter(lambda e: not {0, 47} & {*e} and e not in (b".", b".."))
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=entries, then=entries, prefix=st.binary(max_size=2))
def test_entries_are_found_by_prefix_as_they_come_and_go(
    backing: Backing, tmp_path: Path, names: set[bytes], then: set[bytes], prefix: bytes
) -> None:
    place = os.path.join(os.fsencode(tmp_path), os.urandom(8).hex().encode())
    os.mkdir(place)
    present: set[bytes] = set()
    for wanted in (names, then):
        for entry in wanted - present:
            os.close(os.open(os.path.join(place, entry), os.O_CREAT))
        for entry in present - wanted:
            os.unlink(os.path.join(place, entry))
        present = wanted
        with backing.directory(os.fsdecode(place)) as directory:
            assert directory is not None
            found = backing.starting_with(directory, prefix)
        assert found == sorted(entry for entry in present if entry.startswith(prefix))


def test_a_file_is_found_however_soon_after_a_listing_it_comes(backing: Backing, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"web.log.{number}").write_bytes(b"")
        with backing.directory(str(tmp_path)) as directory:
            assert directory is not None
            assert len(backing.starting_with(directory, b"web.log")) == number + 1


def test_a_listing_as_young_as_the_last_change_is_not_relied_on(
    backing: Backing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("namefs.backing._RACY_NS", 10**12)
    now_ns = time.time_ns()
    for number in range(2):
        (tmp_path / f"web.log.{number}").write_bytes(b"")
        # Before Linux 6.13 two changes can have one timestamp, some milliseconds wide.
        os.utime(tmp_path, ns=(now_ns, now_ns))
        with backing.directory(str(tmp_path)) as directory:
            assert directory is not None
            assert len(backing.starting_with(directory, b"web.log")) == number + 1


def test_a_directory_that_did_not_change_is_listed_once(backing: Backing, tmp_path: Path) -> None:
    (tmp_path / "web.log").write_bytes(b"")
    long_ago_ns = 10**18
    os.utime(tmp_path, ns=(long_ago_ns, long_ago_ns))
    with backing.directory(str(tmp_path)) as directory:
        assert directory is not None
        assert backing.starting_with(directory, b"web") == [b"web.log"]
    (tmp_path / "web.log.0").write_bytes(b"")
    os.utime(tmp_path, ns=(long_ago_ns, long_ago_ns))
    with backing.directory(str(tmp_path)) as directory:
        assert directory is not None
        assert backing.starting_with(directory, b"web") == [b"web.log"], "nothing says that it changed"
    os.utime(tmp_path, ns=(long_ago_ns, long_ago_ns + 1))
    with backing.directory(str(tmp_path)) as directory:
        assert directory is not None
        assert backing.starting_with(directory, b"web") == [b"web.log", b"web.log.0"]


# Permissions, against a model of what the kernel does (path_resolution(7), acl(5)).


@dataclass(frozen=True)
class User:
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True)
class Acl:
    """An access ACL: the entries beyond owner and others, whose bits are the mode's."""

    group: int
    mask: int
    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()

    def packed(self, mode: int) -> bytes:
        nobody = 0xFFFFFFFF
        entries = [(0x01, mode >> 6 & 7, nobody), *((0x02, perm, uid) for uid, perm in self.users)]
        entries += [(0x04, self.group, nobody), *((0x08, perm, gid) for gid, perm in self.groups)]
        entries += [(0x10, self.mask, nobody), (0x20, mode & 7, nobody)]
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@dataclass(frozen=True)
class Inode:
    uid: int
    gid: int
    mode: int
    acl: Acl | None = None

    def info(self) -> os.stat_result:
        return os.stat_result((self.mode, 0, 0, 1, self.uid, self.gid, 0, 0, 0, 0))

    def effective(self) -> int:
        return effective_mode(self.info(), self.acl.packed(self.mode) if self.acl else None)


def allowed(user: User, inode: Inode) -> int:
    """The permission bits that the kernel grants an ordinary user."""
    if user.uid == inode.uid:
        return inode.mode >> 6 & 7
    acl = inode.acl
    if acl is None:
        return (inode.mode >> 3 if inode.gid in user.gids else inode.mode) & 7
    for uid, perm in acl.users:
        if uid == user.uid:
            return perm & acl.mask
    matching = [perm for gid, perm in ((inode.gid, acl.group), *acl.groups) if gid in user.gids]
    if matching:
        granted = 0
        for perm in matching:
            granted |= perm
        return granted & acl.mask
    return inode.mode & 7


def allowed_by_path(user: User, above: list[Inode], file: Inode) -> int:
    reachable = all(allowed(user, directory) & 1 for directory in above)
    return allowed(user, file) if reachable else 0


bits = st.integers(0, 7)
uids, gids = st.sampled_from([0, 1, 2]), st.sampled_from([0, 11, 12])
# Mostly as directories and files are, and sometimes anything at all.
modes = st.one_of(st.sampled_from([0o755, 0o750, 0o711, 0o700, 0o770, 0o644, 0o640]), st.integers(0, 0o777))


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    mode, acl = draw(modes), None
    if draw(st.booleans()):
        named = st.dictionaries(st.sampled_from([1, 2, 3]), bits, max_size=2)
        named_groups = st.dictionaries(st.sampled_from([11, 12, 13]), bits, max_size=2)
        # With an ACL, the mode's group bits are the mask.
        acl = Acl(draw(bits), mode >> 3 & 7, tuple(draw(named).items()), tuple(draw(named_groups).items()))
    return Inode(draw(uids), draw(gids), mode, acl)


USERS = [
    User(uid, frozenset(groups))
    for uid in (1, 2, 3)
    for groups in ([], [0], [11], [12], [13], [11, 12], [11, 12, 13], [0, 11, 12, 13])
]


@settings(deadline=None, max_examples=400)
@given(st.lists(inodes(), max_size=3), inodes())
def test_the_view_grants_nobody_what_the_files_own_path_does_not(above: list[Inode], file: Inode) -> None:
    guard = Guard()
    for directory in above:
        guard = guard.under(directory.uid, directory.gid, directory.effective())
    shown = Inode(file.uid, file.gid, guard.limit(file.uid, file.gid, file.effective()))
    for user in USERS:
        assert allowed(user, shown) & ~allowed_by_path(user, above, file) == 0, user


@untimed
@given(inodes())
def test_an_effective_mode_grants_nobody_more_than_mode_and_acl(file: Inode) -> None:
    shown = Inode(file.uid, file.gid, file.effective())
    for user in USERS:
        assert allowed(user, shown) & ~allowed(user, file) == 0, user


@untimed
@given(inodes(), st.integers(0, 0o777))
def test_open_directories_take_nothing_away(file: Inode, mode: int) -> None:
    guard = Guard().under(1, 11, mode | 0o111)
    assert guard == Guard()
    assert guard.limit(file.uid, file.gid, file.mode) == file.mode


@pytest.mark.parametrize(
    ("directories", "file", "mode"),
    [
        # libvirt's own: /var/lib/libvirt/qemu is 0750 libvirt-qemu, what lies in it mostly root's.
        ([(64055, 64055, 0o750)], (0, 0, 0o644), 0o600),
        ([(64055, 64055, 0o750)], (64055, 64055, 0o644), 0o640),
        ([(64055, 64055, 0o750)], (64055, 64055, 0o600), 0o600),
        # swtpm's logs: /var/log/swtpm/libvirt/qemu is 0730 swtpm:swtpm.
        ([(107, 113, 0o730)], (107, 113, 0o644), 0o640),
        ([(0, 0, 0o755), (0, 0, 0o711)], (1000, 1000, 0o644), 0o644),
        ([(1000, 1000, 0o700)], (1000, 1000, 0o664), 0o600),
        ([(1000, 1000, 0o700)], (1001, 1000, 0o664), 0o000),
    ],
)
def test_what_a_directory_above_forbids_is_forbidden(
    directories: list[tuple[int, int, int]], file: tuple[int, int, int], mode: int
) -> None:
    guard = Guard()
    for directory in directories:
        guard = guard.under(*directory)
    assert guard.limit(*file) == mode


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that all users can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="namefs-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_what_counts_is_the_way_to_the_file_and_not_to_a_symlink(
    backing: Backing, tmp_path: Path, reachable: Path
) -> None:
    (tmp_path / "link").symlink_to(reachable)
    tmp_path.chmod(0o700)
    with backing.directory(str(tmp_path / "link")) as directory:
        assert directory is not None
        assert directory.guard == Guard()
    with backing.directory(str(tmp_path), [b"none"]) as directory:
        assert directory is None
    (tmp_path / "below").mkdir()
    with backing.directory(str(tmp_path / "below")) as directory:
        assert directory is not None
        assert directory.guard.limit(1000, 1000, 0o666) == 0


def readable(path: Path, user: User) -> bool:
    """Whether the kernel lets the user read the file."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(sorted(user.gids))
            os.setresgid(*[65534] * 3)
            os.setresuid(*[user.uid] * 3)
            os.close(os.open(path, os.O_RDONLY))
            os._exit(0)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(2)
    _pid, result = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(result) in (0, 1)
    return os.waitstatus_to_exitcode(result) == 0


READERS = [
    User(0, frozenset()),
    User(1000, frozenset()),
    User(1001, frozenset([2000])),
    User(1002, frozenset([3000])),
]


@pytest.mark.parametrize("place", ["dir/log", "dir/below/log"])
@pytest.mark.parametrize(
    ("of_directory", "of_file", "view_readers"),
    [
        ([], [], [0, 1000, 1001, 1002]),
        (["u:1001:---"], [], [0, 1000]),
        (["u:1001:r-x"], [], [0, 1000, 1001, 1002]),
        (["g:3000:---"], [], [0, 1000, 1001]),
        # A mode has no bits for one user alone: what one is denied, the user's group may not have.
        ([], ["u:1002:---"], [0, 1000]),
        ([], ["o::---", "u:1002:r--"], [0, 1000, 1001]),
        ([], ["u:1001:r--", "m::---"], [0, 1000]),
    ],
)
def test_access_control_lists_are_heeded_on_the_way_and_at_the_file(
    backing: Backing,
    reachable: Path,
    place: str,
    of_directory: list[str],
    of_file: list[str],
    view_readers: list[int],
) -> None:
    file = reachable / place
    file.parent.mkdir(mode=0o755, parents=True)
    file.write_bytes(b"")
    file.chmod(0o644)
    for path in (file, file.parent, reachable / "dir"):
        os.chown(path, 1000, 2000)
    for path, entries_ in ((reachable / "dir", of_directory), (file, of_file)):
        for entry in entries_:
            subprocess.run(["setfacl", "-m", entry, path], check=True)
    with backing.directory(str(file.parent)) as directory:
        assert directory is not None
        info = os.lstat(file)
        mode = backing.mode(directory, b"log", info)
    shown = Inode(info.st_uid, info.st_gid, mode)
    in_view = [user.uid for user in READERS if user.uid == 0 or allowed(user, shown) & 4]
    by_path = [user.uid for user in READERS if readable(file, user)]
    assert set(in_view) <= set(by_path)
    assert in_view == view_readers
