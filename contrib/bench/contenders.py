"""Ways to the same guests' files, for `view`: what each is, the tree behind them, how each is mounted."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from namefs import domxml
from namefs.applying import apply
from namefs.index import Index
from namefs.journal import Journal
from namefs.model import Listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PROJECT = Path(__file__).resolve().parents[2]
FILE_BYTES = 5000
MOUNT_TIMEOUT_S = 20.0
MNT_DETACH = 2
EXAMPLE_PLACES = (
    "/usr/share/doc/python3-pyfuse3/examples/passthroughfs.py",
    "pyfuse3-*/examples/passthroughfs.py",
)


class LeftOutError(Exception):
    """Why a contender cannot be measured here."""


@dataclass(frozen=True)
class Contender:
    """One way to the files: where it shows each kind. ``config`` and ``log`` take a guest's name in."""

    title: str
    top: Path
    names: Path
    config: str
    log: str
    big: Path
    links: bool = False
    """Its files are symlinks: their attributes are those that stat(2) gets."""


def stock(title: str, tree: Path) -> Contender:
    """The stock layout, itself or mirrored at ``tree``."""
    etc = tree / "etc/libvirt/qemu"
    log = tree / "var/log/libvirt/qemu"
    big = tree / "var/lib/libvirt/qemu/save" / f"{name_of(0)}.save"
    return Contender(title, tree, etc, f"{etc}/{{}}.xml", f"{log}/{{}}.log", big)


def by_name(title: str, top: Path, links: bool = False) -> Contender:
    """A directory for each guest, at ``top``."""
    big = top / name_of(0) / "save/managed.save"
    return Contender(title, top, top, f"{top}/{{}}/config.xml", f"{top}/{{}}/log/qemu.log", big, links)


# The tree


def name_of(number: int) -> str:
    """The libvirt name of one of the guests."""
    return f"{('web', 'db', 'mail', 'build')[number % 4]}-{number:04}"


def uuid_of(number: int) -> UUID:
    """Its UUID, the same in every run."""
    return UUID(int=random.Random(number).getrandbits(128), version=4)


def definition(number: int) -> bytes:
    """Its domain XML, as long as libvirt's are."""
    name = name_of(number)
    head = f"""<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid_of(number)}</uuid>
  <memory unit='KiB'>2097152</memory>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <nvram>/var/lib/libvirt/qemu/nvram/{name}_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='guests/{name}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'>
      <log file='/var/log/libvirt/qemu/{name}-serial0.log' append='on'/>
      <target port='0'/>
    </serial>
"""
    end = "  </devices>\n</domain>\n"
    ports = (f"    <controller type='pci' index='{n}' model='pcie-root-port'/>\n" for n in range(1, 999))
    while len(head) < FILE_BYTES - len(end):
        head += next(ports)
    return (head + end).encode()


def start(number: int) -> bytes:
    """What libvirt writes to QEMU's log at a start: its own line, and the command line."""
    text = (
        "2026-11-24 05:00:00.123+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4+deb12u2, "
        f"qemu version: 7.2.17, kernel: 6.1.0, hostname: host\nLC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n"
        f"-name guest={name_of(number)},debug-threads=on \\\n-uuid {uuid_of(number)} \\\n"
    )
    devices = (f"-device pcie-root-port,port={n},chassis={n},id=pci.{n},bus=pcie.0 \\\n" for n in range(999))
    while len(text) < FILE_BYTES:
        text += next(devices)
    return (text + "-msg timestamp=on\n").encode()


def make_tree(tree: Path, farm: Path, guests: int, big_bytes: int) -> None:
    """The guests' files in the stock layout, five each, and one that is big; ``farm`` has links to them."""
    qemu, logs = tree / "var/lib/libvirt/qemu", tree / "var/log/libvirt/qemu"
    for directory in (
        tree / "etc/libvirt/qemu",
        tree / "run/libvirt/qemu",
        logs,
        qemu / "nvram",
        qemu / "save",
    ):
        directory.mkdir(parents=True)
    noise = random.Random(0).randbytes(FILE_BYTES)
    for number in range(guests):
        name = name_of(number)
        xml = definition(number)
        files = {
            "config.xml": (tree / f"etc/libvirt/qemu/{name}.xml", xml),
            "log/qemu.log": (logs / f"{name}.log", start(number)),
            "log/serial0.log": (logs / f"{name}-serial0.log", noise),
            "nvram/VARS.fd": (qemu / f"nvram/{name}_VARS.fd", noise),
            "snapshots/installed.xml": (qemu / f"snapshot/{name}/installed.xml", xml),
        }
        for shown, (path, content) in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            link_in(farm / name / shown, path)
    big = stock("", tree).big
    with big.open("wb") as file:
        piece = random.Random(1).randbytes(1 << 20)
        for _ in range(big_bytes >> 20):
            file.write(piece)
    link_in(by_name("", farm).big, big)


def link_in(link: Path, path: Path) -> None:
    """A symlink of the farm, and the directory it needs."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path)


# The contenders


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there, be it dead."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def unmount(path: Path, flags: int) -> bool:
    """umount2(2), which needs no program and so cannot fail for want of one."""
    return bool(ctypes.CDLL(None).umount2(os.fsencode(path), flags) == 0)


def remove(home: Path) -> None:
    """Remove the tree, unless something is still mounted in it: that would be emptied too."""
    if any(is_mounted(path) for path in home.iterdir()):
        sys.exit(f"{home} is not removed: something is still mounted there")
    shutil.rmtree(home)


@contextmanager
def mounted(path: Path, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs a FUSE daemon in the foreground. Raises LeftOutError if it does not come up."""
    path.mkdir()
    said = path.with_name(path.name + ".said")
    with said.open("wb") as log:
        # In a session of its own: a ^C is for this script, which then unmounts.
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
        )
    try:
        give_up_s = time.monotonic() + MOUNT_TIMEOUT_S
        while not is_mounted(path):
            if daemon.poll() is not None or time.monotonic() > give_up_s:
                tail = said.read_text(errors="replace").strip().splitlines()[-1:]
                raise LeftOutError(" ".join(["it did not mount:", *tail]))
            time.sleep(0.02)
        os.statvfs(path)
        yield
    finally:
        unmount(path, 0)
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        while is_mounted(path) and unmount(path, MNT_DETACH):
            pass


def bindfs(stack: ExitStack, home: Path, tree: Path) -> Contender:
    """Bindfs as it is by default."""
    program = shutil.which("bindfs")
    if program is None:
        raise LeftOutError("it is not installed (apt install bindfs)")
    stack.enter_context(mounted(home / "bindfs", [program, "-f", str(tree), str(home / "bindfs")]))
    return stock("bindfs", home / "bindfs")


def example(stack: ExitStack, home: Path, tree: Path, given: str | None) -> Contender:
    """pyfuse3's passthrough example, in the interpreter that runs this script."""
    found = [given] if given else [path for place in EXAMPLE_PLACES for path in sorted(glob.glob(place))]
    if not found:
        raise LeftOutError(
            f"not at {' or '.join(EXAMPLE_PLACES)}; it is in pyfuse3's source (pip download --no-deps "
            "--no-binary pyfuse3 pyfuse3): --example FILE"
        )
    command = [sys.executable, found[-1], str(tree), str(home / "example")]
    stack.enter_context(mounted(home / "example", command))
    return stock("pyfuse3's example", home / "example")


def namefs(stack: ExitStack, home: Path, tree: Path, guests: int) -> Contender:
    """namefs on a saved index, as it serves while libvirt is away: no libvirt here has so many guests."""
    at = home / "by-name"
    domains = tuple(
        domxml.parse("local", None, definition(number), state="shut off") for number in range(guests)
    )
    applied = apply(Index(), [Listed("local", domains)], time.time_ns())
    journal = Journal(str(home / "index.sqlite"))
    journal.save(applied.index, applied.touched)
    journal.close()
    settings = home / "namefs.toml"
    settings.write_text(
        f"mountpoint = {json.dumps(str(at))}\n"
        f"journal = {json.dumps(str(home / 'index.sqlite'))}\n"
        f"runtime-directory = {json.dumps(str(home / 'run'))}\n"
        f"[[connection]]\nuri = {json.dumps(f'qemu+unix:///system?socket={home}/none')}\n"
        f"root = {json.dumps(str(tree))}\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "LIBVIRT_DEFAULT_URI"}
    environ["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "-m", "namefs", "mount", "--config", str(settings)]
    stack.enter_context(mounted(at, command, environ))
    return by_name("namefs", at)
