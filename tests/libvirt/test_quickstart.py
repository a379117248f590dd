"""``contrib/quickstart`` run for real, on a copy of this machine that vanishes with the test.

The copy shares the machine's programs and kernel, and has processes, /run and changes to /etc, /var and
/usr/local of its own; no libvirt runs on it, and /dev/kvm is as a machine without udev has it: root's alone.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICKSTART = Path(__file__).parents[2] / "contrib" / "quickstart"
VIEW = "/var/lib/libvirt/by-name"
TIMEOUT_S = 180

# bash, as PID 1 of the copy, reaps what libvirt's daemons and QEMU leave to it: a guest counts as stopped
# only when its process is gone. It ends, and with it all the others, when its standard input does.
COPY = """
set -eu
mount --make-rprivate /
mount -t proc proc /proc
changes=$(mktemp -d)
mount -t tmpfs tmpfs "$changes"
for directory in etc var usr/local; do
    name=${directory//\\//-}
    mkdir "$changes/$name" "$changes/$name.work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=$changes/$name,workdir=$changes/$name.work" \
        overlay "/$directory"
done
mount -t tmpfs tmpfs /run
# libvirt uses cgroups when it sees some: guests of two hosts would meet in one.
awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts | sort -r | xargs -r -n 1 umount --lazy
if [ -c /dev/kvm ]; then
    mknod -m 600 "$changes/kvm" c $(stat -c '0x%t 0x%T' /dev/kvm)
    mount --bind "$changes/kvm" /dev/kvm
fi
# As after installation: nobody has made a guest, a hook or a view.
rm -rf /etc/libvirt/hooks/* /etc/libvirt/qemu/*.xml /var/lib/namefs /var/lib/libvirt/by-name
rm -rf /usr/local/lib/namefs /usr/local/bin/namefs /var/log/namefs.log
echo ready
read -r _ || true
"""


class Copy:
    """A copy of this machine."""

    def __init__(self) -> None:
        command = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "bash", "-c", COPY]
        self.unshare = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.unshare.stdout
        assert self.unshare.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text()
        self.enter = ["nsenter", "--target", children.strip(), "--mount", "--pid", "--uts"]

    def end(self) -> None:
        """Kills all that runs on it; its files vanish with its last process."""
        assert self.unshare.stdin
        assert self.unshare.stdout
        self.unshare.stdin.close()
        self.unshare.wait(TIMEOUT_S)
        self.unshare.stdout.close()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on it; its exit code may be anything."""
        return subprocess.run(
            [*self.enter, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def output(self, *command: str) -> str:
        """What a command prints that has to succeed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def quickstart(self, *arguments: str) -> str:
        return self.output(str(QUICKSTART), *arguments)

    def names(self) -> list[str]:
        """libvirt's names of all guests."""
        return sorted(self.output("virsh", "-q", "list", "--all", "--name").split())

    def daemon(self) -> int:
        """Process id, there, of the daemon that serves the view."""
        pid: int = json.loads(self.output("namefs", "status", "--json"))["pid"]
        return pid

    def files(self) -> dict[str, str]:
        """Type, mode and owner of what the quick start could touch.

        But for what libvirt keeps for itself, and makes when it first runs.
        """
        places = (
            "/dev/kvm /etc/apparmor.d /etc/libvirt /etc/systemd /run /usr/local/bin /usr/local/lib "
            "/var/lib/libvirt /var/lib/namefs /var/log"
        )
        of_libvirt = [
            "/etc/libvirt/nwfilter", "/etc/libvirt/qemu/networks", "/etc/libvirt/secrets", "/run/libvirt",
            "/run/libvirtd.pid", "/run/virtlogd.pid", "/run/utmp", "/var/lib/libvirt/dnsmasq",
            "/var/lib/libvirt/qemu", "/var/log/libvirt/libvirtd.log", "/var/log/libvirt/virtlogd.log",
        ]  # fmt: skip
        prune = " -o ".join(f"-path {path}" for path in of_libvirt)
        find = f"find {places} -xdev \\( {prune} \\) -prune -o -printf '%p\\t%M %u %g\\n' 2>/dev/null || true"
        return dict(line.split("\t") for line in self.output("sh", "-c", find).splitlines())


@pytest.fixture
def copy() -> Iterator[Copy]:
    copy = Copy()
    yield copy
    copy.end()


def test_one_command_gives_a_view_of_two_demonstration_guests_and_taken_back_leaves_nothing(
    copy: Copy,
) -> None:
    before = copy.files()

    said = copy.quickstart()

    assert "failed" not in said
    assert copy.names() == ["demo-db", "demo-web"]
    assert copy.output("ls", VIEW).split() == ["demo-db", "demo-web"]
    assert "starting up" in copy.output("cat", f"{VIEW}/demo-web/log/qemu.log")
    assert "demo-web" in copy.output("namefs", "list")
    assert "hook" in said

    after_one = copy.files()
    assert "nothing was changed" in copy.quickstart()
    assert copy.files() == after_one

    # What a person would try: whatever the guest is called by then, its files are known.
    copy.output("virsh", "destroy", "demo-web")
    copy.output("mv", f"{VIEW}/demo-web", f"{VIEW}/shop")
    assert copy.names() == ["demo-db", "shop"]
    copy.output("virsh", "start", "shop")
    copy.output("virsh", "snapshot-create-as", "shop", "one", "--disk-only")
    copy.output("virsh", "snapshot-create-as", "shop", "two", "--disk-only")
    copy.output("virsh", "managedsave", "demo-db")

    copy.quickstart("--undo")

    assert copy.files() == before
    processes = copy.output("ps", "-e", "-o", "args=")
    for program in ("namefs", "libvirtd", "virtlogd", "qemu"):
        assert program not in processes
    assert "Nothing to undo" in copy.quickstart("--undo")


def test_a_guest_that_was_there_is_shown_and_nothing_is_made_or_taken_from_it(copy: Copy) -> None:
    copy.output("virtlogd", "-d")
    copy.output("libvirtd", "-d")
    definition = (
        "<domain type='qemu'><name>mine</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    )
    copy.output("chmod", "666", "/dev/kvm")
    copy.output("bash", "-c", f'virsh define <(echo "{definition}")')
    before = copy.files()

    copy.quickstart()

    assert copy.names() == ["mine"]
    assert copy.output("ls", VIEW).split() == ["mine"]

    copy.quickstart("--undo")

    assert copy.names() == ["mine"], "libvirt, which was not started here, goes on"
    assert copy.files() == before


def test_libvirt_is_told_of_its_first_hook(copy: Copy) -> None:
    """It looks for hooks when it starts, and not again while there were none."""
    copy.output("virtlogd", "-d")
    copy.output("libvirtd", "-d")

    copy.quickstart()

    # The demonstration guests were started after that.
    status = json.loads(copy.output("namefs", "status", "--json"))
    assert status["hook"]["last_call"]


def test_a_run_that_broke_off_can_be_finished(copy: Copy) -> None:
    copy.output("mkdir", "-p", "/etc/libvirt/hooks/qemu.d/50-namefs")
    broken = copy.run(str(QUICKSTART))
    assert broken.returncode == 1
    assert broken.stdout.splitlines()[-1].startswith(
        "quickstart: /etc/libvirt/hooks/qemu.d/50-namefs is there"
    )
    copy.output("rm", "-r", "/etc/libvirt/hooks/qemu.d")

    copy.quickstart()

    assert copy.output("ls", VIEW).split() == ["demo-db", "demo-web"]


def test_a_run_that_broke_off_can_be_taken_back(copy: Copy) -> None:
    copy.output("mkdir", "-p", "/etc/libvirt/hooks/qemu.d/50-namefs")
    before = copy.files()
    assert copy.run(str(QUICKSTART)).returncode == 1

    copy.quickstart("--undo")

    assert copy.files() == before


def test_another_version_takes_the_place_of_the_one_that_runs(copy: Copy) -> None:
    copy.quickstart()
    first = copy.daemon()
    installed = "/usr/local/lib/namefs/namefs/__init__.py"
    copy.output("sh", "-c", f"echo '# of an older version' >> {installed}")

    copy.quickstart()

    assert copy.daemon() != first
    assert "older" not in copy.output("cat", installed)
    assert copy.output("ls", VIEW).split() == ["demo-db", "demo-web"]


def test_a_view_whose_daemon_died_is_mounted_again(copy: Copy) -> None:
    copy.quickstart()
    copy.output("kill", "-KILL", str(copy.daemon()))

    copy.quickstart()

    assert copy.output("ls", VIEW).split() == ["demo-db", "demo-web"]


def test_what_is_there_from_elsewhere_is_left_alone(copy: Copy) -> None:
    copy.output("sh", "-c", "echo mine > /usr/local/bin/namefs")
    done = copy.run(str(QUICKSTART))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("quickstart: /usr/local/bin/namefs is there already")
    copy.quickstart("--undo")
    assert copy.output("cat", "/usr/local/bin/namefs") == "mine\n"


@pytest.mark.parametrize(
    "release", ["ID=fedora\nVERSION_ID=43\n", "ID=debian\n", "ID=ubuntu\nVERSION_ID=22.04\n"]
)
def test_another_distribution_is_refused_by_name_before_anything_is_done(copy: Copy, release: str) -> None:
    copy.output(
        "sh", "-c", f"rm /etc/os-release; printf '%sPRETTY_NAME=\"Some OS\"\n' '{release}' >/etc/os-release"
    )
    before = copy.files()
    done = copy.run(str(QUICKSTART))
    assert done.returncode == 1
    assert done.stdout.startswith("quickstart: knows Debian 12 and 13 and Ubuntu 24.04, and this is Some OS;")
    assert done.stdout.count("\n") == 1
    assert copy.files() == before


def test_a_machine_without_fuse_is_told_what_it_lacks(copy: Copy) -> None:
    copy.output("sh", "-c", "mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && chmod 666 /dev/null")
    done = copy.run(str(QUICKSTART))
    assert done.returncode == 1
    assert done.stdout.startswith("quickstart: there is no /dev/fuse: ")
    assert done.stdout.count("\n") == 1
