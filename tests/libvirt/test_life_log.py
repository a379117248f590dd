"""The log of a guest's whole life, with real guests, virtlogd, logrotate and tail(1)."""

from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab import guests
from tests.lab.mounted import NAMEFS, PROJECT
from tests.lab.waiting import until
from tests.libvirt.test_names_and_logs import UUID_A, UUID_B, append, define, real_log, run_once, tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

SOON_S = 20.0


@pytest.fixture
def web(libvirt_host: Host, mounted: Mounted) -> Path:
    """A guest that has run once."""
    define(libvirt_host, guests.xml("web", UUID_A))
    run_once(libvirt_host, "web")
    web = mounted.path / "web"
    until(lambda: (web / "log/qemu.log").exists(), SOON_S, "web's log is shown")
    return web


def kept(host: Host, uuid: UUID) -> Path:
    return host.outside(f"/var/log/libvirt/by-uuid/{uuid}/qemu.log")


def run_as(host: Host, name: str) -> str:
    """Run a guest once; what was written to its log meanwhile."""
    log = real_log(host, name)
    before = log.read_text() if log.exists() else ""
    run_once(host, name)
    return log.read_text().removeprefix(before)


def has(log: Path, text: str) -> bool:
    return log.read_text() == text


def gone(file: Path) -> None:
    until(lambda: not file.exists(), SOON_S, f"{file} is removed")


def logs(mounted: Mounted, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.fspath(PROJECT)}
    command = [*NAMEFS, "logs", "--config", os.fspath(mounted.config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def printed(mounted: Mounted, *arguments: str) -> str:
    out, err = logs(mounted, *arguments).communicate(timeout=SOON_S)
    assert err == b""
    return out.decode()


def test_tail_follows_one_guest_through_stop_start_rotation_rename_and_a_successor_of_its_name(
    libvirt_host: Host, mounted: Mounted, web: Path, tmp_path: Path
) -> None:
    log = kept(libvirt_host, UUID_A)
    inode = (web / "log/qemu.log").stat().st_ino
    with (
        tail(tmp_path, "-n", "+1", "-F", "log/qemu.log", cwd=web) as by_view,
        tail(tmp_path, "-n", "+1", "-F", os.fspath(log), cwd=tmp_path) as by_path,
    ):
        libvirt_host.virsh("start", "web")
        until(lambda: (web / "run/pid").exists(), SOON_S, "web runs")
        with open(f"/proc/{int((web / 'run/pid').read_text())}/fd/2", "w", encoding="ascii") as stderr:
            for number in range(2200):
                stderr.write(f"{number:0999}\n")
        older = real_log(libvirt_host, "web").with_name("web.log.0")
        until(older.exists, SOON_S, "virtlogd has rotated")
        libvirt_host.virsh("destroy", "web")
        real = real_log(libvirt_host, "web")
        until(lambda: real.read_text().endswith("reason=destroyed\n"), SOON_S, "the log ends")
        whole = older.read_text() + real.read_text()
        libvirt_host.virsh("domrename", "web", "shop")
        gone(real)
        gone(older)
        define(libvirt_host, guests.xml("web", UUID_B))
        others = run_as(libvirt_host, "web")
        whole += run_as(libvirt_host, "shop")
        by_view.prints(whole)
        by_path.prints(whole)
    assert real.read_text() == others
    assert f"-uuid {UUID_A}" not in others
    successor, shop = mounted.path / "web/log", mounted.path / "shop/log"
    assert (successor / "qemu.log").read_text() == others
    assert (shop / "qemu.log").stat().st_ino == inode
    assert os.listdir(shop) == os.listdir(successor) == ["qemu.log"]


def test_what_happened_while_namefs_was_down_is_told_apart(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    lines = {UUID_A: (web / "log/qemu.log").read_text(), UUID_B: ""}
    mounted.kill()
    lines[UUID_A] += run_as(libvirt_host, "web")
    libvirt_host.virsh("domrename", "web", "shop")
    lines[UUID_A] += run_as(libvirt_host, "shop")
    libvirt_host.virsh("domrename", "shop", "mail")
    define(libvirt_host, guests.xml("web", UUID_B))
    for name in ("web", "shop"):
        lines[UUID_B] += run_as(libvirt_host, name)
        libvirt_host.virsh("domrename", name, "shop" if name == "web" else "news")
    define(libvirt_host, guests.xml("shop"))
    assert printed(mounted, str(UUID_A)) == lines[UUID_A]
    mounted.start()
    for name, uuid in (("mail", UUID_A), ("news", UUID_B)):
        log = mounted.path / name / "log/qemu.log"
        until(log.exists, SOON_S, f"{name}'s log is shown")
        until(functools.partial(has, log, lines[uuid]), SOON_S, "it has its own lines")
        assert printed(mounted, name) == lines[uuid]
    gone(real_log(libvirt_host, "web"))
    assert real_log(libvirt_host, "shop").exists(), "somebody has that name"
    assert not (mounted.path / "shop/log/qemu.log").exists()


def test_logrotate_copies_and_truncates_and_packs_and_nothing_is_lost_or_doubled(
    libvirt_host: Host, web: Path, tmp_path: Path
) -> None:
    real, rotation = real_log(libvirt_host, "web"), tmp_path / "logrotate.conf"
    rotation.write_text(
        f"{real} {{\n  rotate 3\n  copytruncate\n  compress\n  delaycompress\n"
        "  missingok\n  su root root\n}\n"
    )
    whole = real.read_text()
    with tail(tmp_path, "-n", "+1", "-F", "log/qemu.log", cwd=web) as tailed:
        for number in range(5):
            append(real, f"line {number}\n")
            whole += f"line {number}\n"
            subprocess.run(["logrotate", "-f", "-s", tmp_path / "state", rotation], check=True)
            assert (web / "log/qemu.log").read_text() == whole
        tailed.prints(whole)
    assert real.with_name("web.log.2.gz").exists()


def test_logs_of_several_guests_are_followed_through_a_rename(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    whole = (web / "log/qemu.log").read_text()
    define(libvirt_host, guests.xml("db", UUID_B))
    until((mounted.path / "db").exists, SOON_S, "db is shown")
    assert printed(mounted, "web") == whole
    assert printed(mounted, "-n", "2", "web") == "".join(whole.splitlines(keepends=True)[-2:])
    assert printed(mounted, "--since", "1h", "web") == whole
    assert printed(mounted, "--since", "2999-01-01", "web") == ""
    following = logs(mounted, "-f", "-n", "1", "web", "db")
    try:
        assert following.stdout is not None
        first = following.stdout.readline().decode()
        assert first == "web | " + whole.splitlines(keepends=True)[-1]
        libvirt_host.virsh("domrename", "web", "shop")
        expected = [f"web | {line}" for line in run_as(libvirt_host, "shop").splitlines(keepends=True)]
        assert [following.stdout.readline().decode() for _ in expected] == expected
        expected = [f"db | {line}" for line in run_as(libvirt_host, "db").splitlines(keepends=True)]
        assert [following.stdout.readline().decode() for _ in expected] == expected
    finally:
        following.kill()
        following.communicate()


def test_the_log_of_a_guest_that_is_undefined_is_found(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    whole = (web / "log/qemu.log").read_text()
    libvirt_host.virsh("undefine", "web")
    gone(real_log(libvirt_host, "web"))
    assert printed(mounted, "web") == whole


def test_a_log_that_gets_large_goes_on_in_a_new_file(
    libvirt_host: Host, mount_namefs: Callable[..., Mounted], tmp_path: Path
) -> None:
    mounted = mount_namefs("log-keep-mib = 1\n")
    define(libvirt_host, guests.xml("web", UUID_A))
    whole = run_as(libvirt_host, "web")
    log = kept(libvirt_host, UUID_A)
    until(log.exists, SOON_S, "the log is kept")
    with tail(tmp_path, "-n", "+1", "-F", os.fspath(log), cwd=tmp_path) as tailed:
        tailed.prints(whole)
        for number in range(3):
            lines = "".join(f"{number}.{line:095}\n" for line in range(6000))
            append(real_log(libvirt_host, "web"), lines)
            whole += lines
            tailed.prints(whole)
    parts = [mounted.path / "web/log" / entry for entry in ("qemu.log.1", "qemu.log")]
    assert "".join(part.read_text() for part in parts) == whole
    assert parts[0].stat().st_size <= 1 << 20
