"""All layouts joined: a user of the view need not know which of them a file lies in. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs.layout import libvirt, nova, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from namefs.layout.artefact import Artefact
    from namefs.layout.directories import Directories
    from namefs.model import Domain


def artefacts(
    domain: Domain, former_names: tuple[str, ...], places: Directories, subdir: bytes
) -> Iterator[Artefact]:
    """What the domain may have in ``subdir`` of its directory; whether it is there is for others to see.

    ``former_names`` are the libvirt names that libvirt may have left files under, the latest last. What
    comes first wins where two would have one entry.
    """
    by_libvirt = list(libvirt.artefacts(domain, former_names, places, subdir))
    yield from by_libvirt
    yield from nova.artefacts(domain, places, subdir, by_libvirt)
    yield from store.artefacts(domain, places, subdir, by_libvirt)
