"""Fixtures that need a machine: root, libvirt, QEMU, FUSE. What is missing fails a test, and never skips it.

tests.lab is imported in the fixtures, as it imports libvirt: the tests of the pure parts run without it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.lab import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted


def _need(missing: list[str]) -> None:
    if missing:
        pytest.fail(f"this machine lacks what the test needs: {', '.join(missing)}", pytrace=False)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The libvirt host of this test run. Tests take ``libvirt_host``, which cleans up after them."""
    _need(needs.missing_for_a_host())
    from tests.lab.host import Host

    with ExitStack() as undo:
        host = Host()
        undo.callback(host.stop)
        host.start()
        yield host


@pytest.fixture
def libvirt_host(host: Host) -> Iterator[Host]:
    """A libvirt host without guests, with libvirtd running."""
    yield host
    host.reset()


@pytest.fixture
def mount_namefs(libvirt_host: Host) -> Iterator[Callable[..., Mounted]]:
    """Mounts namefs over ``libvirt_host``; takes further lines of TOML for its configuration file, and the
    command that starts namefs where it is not the usual one.
    """
    _need(needs.missing_for_a_mount())
    from tests.lab.mounted import NAMEFS, Mounted

    with ExitStack() as undo:

        def mount(settings: str = "", command: Sequence[str] = NAMEFS) -> Mounted:
            mounted = Mounted([(libvirt_host.uri, libvirt_host.root)], settings, command)
            undo.callback(mounted.close)
            mounted.start()
            return mounted

        yield mount


@pytest.fixture
def mounted(mount_namefs: Callable[..., Mounted]) -> Mounted:
    """namefs, mounted over ``libvirt_host`` and ready."""
    return mount_namefs()
