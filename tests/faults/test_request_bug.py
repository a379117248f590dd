"""A bug in namefs costs the one who met it an EIO, and nobody the mount."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import altered, guests
from tests.lab.mounted import TIMEOUT_S
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")


def test_a_bug_is_an_eio_and_a_traceback_in_the_log_and_the_mount_goes_on(
    libvirt_host: Host, mount_namefs: Callable[..., Mounted]
) -> None:
    mounted = mount_namefs(command=altered.command(altered.with_a_bug))
    mounted.expect_warning("lookup.* failed; the caller gets EIO|^Traceback ")
    with closing(libvirt_host.connect()) as connection:
        domain = connection.defineXML(guests.xml("web", UUID_A))
        until((mounted.path / "web").exists, TIMEOUT_S, "the guest is in the view")
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (mounted.path / "web" / os.fsdecode(altered.BUGGY_ENTRY)).stat()
        assert f"KeyError: '{altered.BUG}'" in mounted.log
        # All else goes on: by another way the file itself, and what changes.
        assert os.listdir(mounted.path / "web") == ["config.xml"]
        domain.rename("shop")
        until((mounted.path / "shop").exists, TIMEOUT_S, "the guest is found by its new name")
    with pytest.raises(FileNotFoundError):
        (mounted.path / "shop/status.xml").stat()
