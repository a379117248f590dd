"""What is in a guest's own directory of the store, keyed by its UUID: whatever an administrator puts there.

What was adopted into it is named by the guest's definition: as such `layout.libvirt` has it, by its device.
Here is all else that lies beside, under the name that it was given. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from namefs.layout.artefact import SUBDIRECTORIES, TOP, Artefact, Kind, str_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from namefs.layout.directories import Directories
    from namefs.model import Domain

_OWN = rb"\.|generation-1$|adopted\.json(?:\.draft)?$"
"""namefs's own: what was adopted, and, with a dot, what is under way."""

_ANY = re.compile(rb"(?P<file>(?!" + _OWN + rb").+)", re.DOTALL)
_ANY_ON_TOP = re.compile(
    rb"(?P<file>(?!" + _OWN + rb"|(?:" + b"|".join(SUBDIRECTORIES) + rb")$).+)", re.DOTALL
)


def artefacts(
    domain: Domain, places: Directories, subdir: bytes, others: Iterable[Artefact]
) -> Iterator[Artefact]:
    """What the domain may have in ``subdir`` beside the ``others``, which other layouts have there."""
    if subdir == b"log":
        yield lives(domain.uuid, places)
    below = (str(domain.uuid).encode(), *([subdir] if subdir != TOP else []))
    pattern = _ANY_ON_TOP if subdir == TOP else _ANY
    # Image locks have to be taken on the real file, so that images are never shown as files.
    file = Kind.LINK if subdir == b"disks" else Kind.FILE
    besides = tuple(others)
    for kind in (file, Kind.DIRECTORY):
        yield Artefact(subdir, "\0file\0", kind, places.store, pattern, below=below, besides=besides)


def lives(uuid: UUID, places: Directories) -> Artefact:
    """The logs of a domain's whole life."""
    return Artefact(b"log", "\0file\0", Kind.FILE, places.store_log, _ANY, below=(str(uuid).encode(),))


def life_log(file: bytes) -> str:
    """Which log a file there belongs to: ``qemu.log`` for itself and for ``qemu.log.1``, its older part."""
    return str_of(file.removesuffix(OLDER))


OLDER = b".1"
