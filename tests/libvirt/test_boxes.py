"""GNOME Boxes: a user's own libvirt, in which boxes are called by their titles."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID
from xml.sax.saxutils import escape

import pytest

from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.user import User, ordinary_user
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 20.0
CONFIG = PROJECT / "contrib/stacks/gnome-boxes.toml"
BOX = UUID("e7b61ffa-27f9-46c3-b1cd-67c71e469dae")
# As vm-configurator.vala has it.
METADATA = """\
<boxes:gnome-boxes xmlns:boxes="https://wiki.gnome.org/Apps/Boxes">
  <os-state>installed</os-state>
  <media-id>http://fedoraproject.org/fedora/40:2</media-id>
  <media>/home/user/Downloads/Fedora-Workstation-Live-x86_64-40-1.14.iso</media>
</boxes:gnome-boxes>"""


@pytest.fixture
def user() -> Iterator[User]:
    """With a short path: a socket's address holds 107 bytes."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="nfb"))
    directory.chmod(0o755)
    try:
        with ordinary_user(directory) as user:
            yield user
    finally:
        shutil.rmtree(directory)


def test_a_box_is_shown_by_its_title_and_followed_when_boxes_changes_that(user: User) -> None:
    images = user.home / ".local/share/gnome-boxes/images"
    user.run("mkdir", "-p", os.fspath(images))
    guests.make_disk(images / "fedora40-2")
    user.owns(images / "fedora40-2")
    box = guests.xml(
        "fedora40-2", BOX, title="Fedora 40 2", metadata=METADATA, disks={"vda": f"{images}/fedora40-2"}
    )
    defined = user.file("box.xml", box)
    user.run("virsh", "define", os.fspath(defined))
    config = user.file("namefs.toml", CONFIG.read_text())

    def shown() -> list[str]:
        return user.run("ls", "-1", os.fspath(view)).splitlines()

    def rename(title: str) -> None:
        """As Boxes: the definition for the next start, with another title."""
        definition = user.run("virsh", "dumpxml", "--inactive", "fedora40-2")
        before, _, after = definition.partition("<title>")
        defined.write_text(f"{before}<title>{escape(title)}{after[after.index('</title>') :]}")
        user.run("virsh", "define", os.fspath(defined))

    with user.mount("--config", os.fspath(config)) as view:
        until(lambda: shown() == ["Fedora 40 2"], SOON_S, "the box is shown")
        disk = user.run("readlink", f"{view}/Fedora 40 2/disks/vda")
        assert disk.rstrip() == os.fspath(images / "fedora40-2")
        rename("Play & ground")
        until(lambda: shown() == ["Play & ground"], SOON_S, "the new title is shown")

        user.run("virsh", "start", "fedora40-2")
        rename("Lab")
        user.run("virsh", "destroy", "fedora40-2")
        until(lambda: shown() == ["Lab"], SOON_S, "a title for the next start is shown when the box is off")
        assert "starting up libvirt" in user.run("cat", f"{view}/Lab/log/qemu.log")
        listed = user.namefs("list", "--config", os.fspath(config)).split("\t")
        assert listed[:4] == ["Lab", "shut off", str(BOX), "fedora40-2"]


def test_a_disk_in_a_directory_that_is_closed_to_the_user_hides_no_other(user: User) -> None:
    closed, image = user.home.parent / "closed", user.home / "image"
    closed.mkdir(mode=0o700)
    guests.make_disk(image, backing=f"{closed}/base.qcow2")
    user.owns(image)
    disks = {"vda": os.fspath(image), "vdb": f"{closed}/install.qcow2"}
    user.run("virsh", "define", os.fspath(user.file("box.xml", guests.xml("box", BOX, disks=disks))))
    with user.mount() as view:
        shown = ["find", f"{view}/box/disks", "-type", "l", "-printf", "%f %l\\n"]
        until(lambda: (user.run("ls", os.fspath(view))) == "box\n", SOON_S, "the box is shown")
        assert sorted(user.run(*shown).splitlines()) == [
            f"vda {image}",
            f"vda.backing1 {closed}/base.qcow2",
            f"vdb {closed}/install.qcow2",
        ]
        user.namefs("umount", os.fspath(view))
