"""OpenStack Nova's instance directory, keyed by UUID: what lies there that no definition names.

What a definition names, `layout.libvirt` shows: the root disk as ``vda``, and its image in ``_base`` as
``vda.backing1``; the console's log as ``serial0.log``. Here is the rest, and what resizing and deleting
leave for a while. File names as in nova/virt/libvirt: blockinfo.py, driver.py, utils.py. Pure.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

from namefs.layout.artefact import TOP, Artefact, Kind, bytes_of
from namefs.layout.libvirt import ROTATED, TPM_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from namefs.layout.directories import Directories
    from namefs.model import Domain

_IMAGES = re.compile(rb"(?P<file>disk(?:\.(?!info\Z)[^@]+)?|(?:kernel|ramdisk)(?:\.rescue)?)")
"""``disk``, ``disk.config``, ``disk.eph0``, ``disk.local``, ``disk.swap``, each with ``.rescue``; what it
boots from without a disk's help."""


class _Variant(NamedTuple):
    """The instance directory, or what it was renamed to: what its name and its files' entries end in."""

    suffix: bytes
    mark: str


_VARIANTS = (
    _Variant(b"", ""),
    # The directory as it was before a resize, until that is confirmed or reverted.
    _Variant(b"_resize", "@resize"),
    # What is being deleted, or could not be.
    _Variant(b"_del", "@del"),
)


def artefacts(
    domain: Domain, places: Directories, subdir: bytes, others: Iterable[Artefact]
) -> Iterator[Artefact]:
    """What the domain may have in ``subdir`` beside the ``others``, which other layouts have there."""
    rule = _RULES.get(subdir)
    if rule is None:
        return
    besides = tuple(others)
    for instances in _instances(domain, places):
        for variant in _VARIANTS:
            yield from rule(domain, instances, variant, besides)


def _instances(domain: Domain, places: Directories) -> tuple[str, ...]:
    """The directories in which the domain has an instance directory, as its definition tells by its paths.

    Of one that boots from a volume, the console's log is all that lies there.
    """
    uuid = str(domain.uuid)
    found: dict[str, None] = {}
    for path in (*(disk.path for disk in domain.disks), *(log.path for log in domain.logs)):
        if uuid in path:
            instances, last = posixpath.split(posixpath.dirname(places.translate(path)))
            if last == uuid and instances != places.store:
                found[instances] = None
    return tuple(found)


def _top(
    domain: Domain, instances: str, variant: _Variant, _besides: tuple[Artefact, ...]
) -> Iterator[Artefact]:
    # While a server is in rescue: its definition without.
    below = _below(domain, variant)
    yield Artefact(TOP, f"unrescue{variant.mark}.xml", Kind.FILE, instances, b"unrescue.xml", below)


def _disks(
    domain: Domain, instances: str, variant: _Variant, besides: tuple[Artefact, ...]
) -> Iterator[Artefact]:
    below = _below(domain, variant)
    yield Artefact(b"disks", f"disk.info{variant.mark}", Kind.FILE, instances, b"disk.info", below)
    entry = f"\0file\0{variant.mark}"
    yield Artefact(b"disks", entry, Kind.LINK, instances, _IMAGES, below, besides=besides)


def _log(
    domain: Domain, instances: str, variant: _Variant, besides: tuple[Artefact, ...]
) -> Iterator[Artefact]:
    yield Artefact(
        b"log",
        f"console{variant.mark}.log\0rotation\0",
        Kind.FILE,
        instances,
        ROTATED,
        _below(domain, variant),
        prefix=b"console.log",
        besides=besides,
    )


def _tpm(
    domain: Domain, instances: str, variant: _Variant, _besides: tuple[Artefact, ...]
) -> Iterator[Artefact]:
    # Put there for the way to another host, and taken from there to libvirt's place at the next start.
    for version in (b"tpm2", b"tpm1.2"):
        below = (*_below(domain, variant), b"swtpm", bytes_of(str(domain.uuid)), version)
        yield Artefact(b"tpm", f"\0file\0{variant.mark}", Kind.FILE, instances, TPM_STATE, below)


def _below(domain: Domain, variant: _Variant) -> tuple[bytes, ...]:
    return (bytes_of(str(domain.uuid)) + variant.suffix,)


_RULES = {TOP: _top, b"disks": _disks, b"log": _log, b"tpm": _tpm}
