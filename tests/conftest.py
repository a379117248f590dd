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
    from tests.lab.two_hosts import TwoHosts


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


@pytest.fixture(scope="session")
def two_hosts(host: Host) -> Iterator[TwoHosts]:
    """That host and another one. Tests take ``hosts``, which cleans up after them."""
    from tests.lab.host import Host
    from tests.lab.two_hosts import TwoHosts

    with ExitStack() as undo:
        other = Host()
        undo.callback(other.stop)
        other.start()
        both = TwoHosts(host, other)
        undo.callback(both.close)
        yield both


@pytest.fixture
def hosts(two_hosts: TwoHosts) -> Iterator[TwoHosts]:
    """Two libvirt hosts without guests, between which guests can be migrated."""
    yield two_hosts
    two_hosts.reset()


@pytest.fixture
def mount_both(hosts: TwoHosts) -> Iterator[Callable[..., Mounted]]:
    """Mounts namefs over both of ``hosts``, as connections ``a`` and ``b``; takes further lines of TOML for
    its configuration file, and for each connection in it, and the command that starts namefs.
    """
    _need(needs.missing_for_a_mount())
    from tests.lab.mounted import NAMEFS, Mounted

    with ExitStack() as undo:

        def mount(settings: str = "", of_connections: str = "", command: Sequence[str] = NAMEFS) -> Mounted:
            both = [(host.uri, host.root) for host in (hosts.a, hosts.b)]
            mounted = Mounted(both, settings, command, of_connections)
            undo.callback(mounted.close)
            mounted.start()
            return mounted

        yield mount


@pytest.fixture
def mount_namefs(libvirt_host: Host) -> Iterator[Callable[..., Mounted]]:
    """Mounts namefs over ``libvirt_host``; takes further lines of TOML for its configuration file, the
    command that starts namefs where it is not the usual one, and lines for the connection in that file.
    """
    _need(needs.missing_for_a_mount())
    from tests.lab.mounted import NAMEFS, Mounted

    with ExitStack() as undo:

        def mount(settings: str = "", command: Sequence[str] = NAMEFS, of_connection: str = "") -> Mounted:
            mounted = Mounted([(libvirt_host.uri, libvirt_host.root)], settings, command, of_connection)
            undo.callback(mounted.close)
            mounted.start()
            return mounted

        yield mount


@pytest.fixture
def mounted(mount_namefs: Callable[..., Mounted]) -> Mounted:
    """namefs, mounted over ``libvirt_host`` and ready."""
    return mount_namefs()
