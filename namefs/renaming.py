"""Renaming by hand, by mv(1) and by ``namefs rename``: both ask libvirt, and fail as it does."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any

import trio

from namefs import naming
from namefs.answers import find
from namefs.errors import ExitCode, NamefsError
from namefs.layout.libvirt import bytes_of
from namefs.model import Change
from namefs.sources.libvirt import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from namefs.guest import Shelf
    from namefs.layout.directories import Directories
    from namefs.model import Record
    from namefs.sources.reader import Reader
    from namefs.view import View

_ADDED_BYTES = len(b".xml.new")


class Renaming:
    """Asks libvirt for renames, after what libvirt does not check but should."""

    def __init__(
        self,
        view: View,
        reader: Reader,
        places: Callable[[str], Directories | None],
        shelf: Shelf,
        withdraw: Callable[[Sequence[Change]], None],
    ) -> None:
        self._view = view
        self._reader = reader
        self._places = places
        self._shelf = shelf
        self._withdraw = withdraw

    async def by_entry(self, old: bytes, new: bytes) -> None:
        """rename(2) within the root directory. Raises OSError."""
        key = self._view.index.by_entry.get(old)
        if key is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if len(new) > naming.ENTRY_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if new in self._view.index.by_entry:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            await self._rename(self._view.index.records[key], naming.decode(new))
        except naming.NotAnEntry as error:
            raise OSError(errno.EINVAL, str(error)) from error
        except Refused as error:
            raise OSError(error.errno, error.message) from error
        except Unreachable as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        except NamefsError as error:
            raise OSError(errno.EIO, str(error)) from error
        if new not in self._view.index.by_entry:
            # The kernel takes the entry for the guest's, but it is shown by another (`.x` as `%2Ex`).
            # It withdraws only after it has moved the old entry: both take the directory's lock.
            self._withdraw([Change(new, key, None)])

    async def by_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The control socket's ``rename``. Raises NamefsError with libvirt's own words."""
        old, new = request.get("old"), request.get("new")
        if not isinstance(old, str) or not isinstance(new, str):
            raise NamefsError(ExitCode.USAGE, "a rename takes an old and a new name")
        record = find(self._view.index, old)
        try:
            await self._rename(record, new)
        except Refused as error:
            raise NamefsError(ExitCode.LIBVIRT_REFUSED, error.message) from error
        except Unreachable as error:
            raise NamefsError(ExitCode.LIBVIRT_UNREACHABLE, str(error)) from error
        return {"name": new, "uuid": str(record.key.uuid)}

    async def _rename(self, record: Record, new: str) -> None:
        self._check(new)
        left = await trio.to_thread.run_sync(functools.partial(self._left_under, record, new))
        if left is not None and (record.domain.connection, new) not in self._view.index.by_name:
            what = (
                f"{left} is left from an earlier guest of that name, and libvirt would delete it"
                " or start from it: move it away first"
            )
            raise Refused(what, errno.EEXIST)
        await self._reader.rename(record.key.uuid, new)

    def _check(self, new: str) -> None:
        """Names that libvirt takes and is the worse for.

        Given ``..`` libvirt 9.0 deletes its own directories, and ``.`` all snapshots' definitions. With
        a newline it renames, but never takes the definition again.
        """
        try:
            raw = bytes_of(new)
        except UnicodeEncodeError:
            raise Refused(f"{naming.display(new)} is no name that bytes could spell", errno.EINVAL) from None
        if new in ("", ".", ".."):
            raise Refused(f"a guest can't be called {new!r}", errno.EINVAL)
        if any(c in new for c in "/\n\r\0"):
            raise Refused("a guest's name can't hold '/', a line break or a NUL", errno.EINVAL)
        if len(raw) + _ADDED_BYTES > naming.ENTRY_MAX_BYTES:
            most = naming.ENTRY_MAX_BYTES - _ADDED_BYTES
            raise Refused(
                f"the name has {len(raw)} bytes, and libvirt can save {most} at most", errno.ENAMETOOLONG
            )

    def _left_under(self, record: Record, new: str) -> str | None:
        """What a rename would destroy, or pick up by mistake: libvirt clears snapshot/NEW and
        checkpoint/NEW away, and would start from another guest's NEW.save."""
        places = self._places(record.domain.connection)
        if places is None:
            return None
        for below, entry in (
            ((b"snapshot",), bytes_of(new)),
            ((b"checkpoint",), bytes_of(new)),
            ((b"save",), bytes_of(new) + b".save"),
        ):
            with self._shelf.backing.directory(places.lib, below) as directory:
                if directory is not None and self._shelf.backing.stat(directory, entry) is not None:
                    return os.path.join(directory.path, os.fsdecode(entry))
        return None
