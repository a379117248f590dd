"""Renaming by hand, by mv(1) and by ``namefs rename``.

A guest that is off is renamed by libvirt, at once. For one that runs the view's name changes at once, and
libvirt's own follows (`pending`).
"""

from __future__ import annotations

import errno
import functools
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from namefs import naming, shown
from namefs.errors import ExitCode, NamefsError
from namefs.finding import find
from namefs.layout.artefact import bytes_of
from namefs.model import Asked, Change, Wished
from namefs.sources.libvirt import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from namefs.guest import Shelf
    from namefs.invalidation import Invalidator
    from namefs.layout.directories import Directories
    from namefs.model import Domain, Place, Record
    from namefs.sources.reader import Reader
    from namefs.view import View

_ADDED_BYTES = len(b".xml.new")


class Renaming:
    """Renames what libvirt lets us rename, after what libvirt does not check but should."""

    def __init__(
        self,
        view: View,
        readers: Mapping[str, Reader],
        places: Callable[[str], Directories | None],
        shelf: Shelf,
        apply: Callable[..., Awaitable[None]],
        invalidator: Invalidator,
    ) -> None:
        self._view = view
        self._readers = readers
        self._places = places
        self._shelf = shelf
        self._apply = apply
        self._invalidator = invalidator
        # From the look at who has a name, and at what libvirt calls it, until it is given: two must not be
        # given the same, and what is asked for is counted from libvirt's name.
        self._renaming = trio.Lock()

    async def by_place(self, old: Place, new: Place) -> None:
        """rename(2). Raises OSError."""
        with _as_errnos(), self._invalidator.kernel_renames():
            async with self._renaming:
                record = self._at(old)
                if old.group != new.group:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                if len(new.entry) > naming.ENTRY_MAX_BYTES:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                if self._is_taken(new):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                await self._rename(record, naming.decode(new.entry))
        if new not in self._view.index.by_place:
            # The kernel takes the entry for the guest's, but it is shown by another (`.x` as `%2Ex`).
            # It withdraws only after it has moved the old entry: both take the directory's lock.
            self._invalidator.submit([Change(new, record.key, None)])

    async def swap_places(self, one: Place, other: Place) -> None:
        """renameat2(2) with RENAME_EXCHANGE. Raises OSError."""
        with _as_errnos(), self._invalidator.kernel_renames():
            async with self._renaming:
                records = self._at(one), self._at(other)
                if one.group != other.group:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                await self._swap(*records)

    async def by_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The control socket's ``rename``: ``old`` and ``new``, perhaps ``swap``, or ``cancel``.

        Raises NamefsError.
        """
        old, new = request.get("old"), request.get("new")
        if not isinstance(old, str) or not (isinstance(new, str) or request.get("cancel") is True):
            raise NamefsError(ExitCode.USAGE, "a rename takes an old and a new name")
        try:
            async with self._renaming:
                record = find(self._view.index, old)
                if request.get("cancel"):
                    await self._cancel(record)
                elif request.get("swap"):
                    await self._swap(record, find(self._view.index, str(new)))
                else:
                    await self._rename(record, str(new))
            # Who asked finds it so by any path. mv is answered first: the kernel forgets only then.
            await self._invalidator.done()
        except Refused as error:
            raise NamefsError(ExitCode.LIBVIRT_REFUSED, error.message) from error
        except Unreachable as error:
            raise NamefsError(ExitCode.LIBVIRT_UNREACHABLE, str(error)) from error
        now = self._view.index.records.get(record.key, record)
        return {"name": now.name, "uuid": str(record.key.uuid), "libvirt_name": now.domain.name}

    def _at(self, place: Place) -> Record:
        key = self._view.index.by_place.get(place)
        if key is None:
            code = errno.EPERM if not place.group and place.entry in self._view.index.groups else errno.ENOENT
            raise OSError(code, os.strerror(code))
        return self._view.index.records[key]

    def _is_taken(self, place: Place) -> bool:
        index = self._view.index
        return place in index.by_place or (not place.group and place.entry in index.groups)

    async def _rename(self, record: Record, new: str) -> None:
        self._check(new)
        self._check_free(record, new)
        self._check_settled(record)
        domain, follows = record.domain, self._follows(record)
        # While libvirt's name is to follow an earlier wish, it is asked to by `pending` alone: of two who
        # ask it at once, the one that has thought before the other has done undoes what that did.
        if (
            follows
            and domain.persistent
            and domain.state == "shut off"
            and new != domain.name
            and not self._is_pending(record)
        ):
            try:
                await self._by_libvirt(record, new)
            except Refused as error:
                if error.errno != errno.EBUSY or not shown.can_ask(domain):
                    raise
            else:
                return
        holder = self._view.index.by_name.get((domain.connection, new))
        if follows and holder is not None and holder.uuid != record.key.uuid:
            raise Refused(f"{naming.display(new)} is libvirt's name of another guest", errno.EEXIST)
        await self._ask(self._wish(record, new))

    async def _by_libvirt(self, record: Record, new: str) -> None:
        left = await self.in_the_way(record, new)
        if left is not None and (record.domain.connection, new) not in self._view.index.by_name:
            raise Refused(left, errno.EEXIST)
        await self._readers[record.domain.connection].rename(record.key.uuid, new)

    async def _swap(self, one: Record, other: Record) -> None:
        if one.key == other.key:
            raise Refused("a guest can't change names with itself", errno.EINVAL)
        self._check_settled(one, other)
        if one.group != other.group:
            raise Refused("guests of two groups can't change names", errno.EXDEV)
        if one.name == other.name:
            raise Refused("both have one name already", errno.EINVAL)
        await self._ask(self._wish(one, other.name), self._wish(other, one.name))

    async def _cancel(self, record: Record) -> None:
        if not self._is_pending(record):
            raise Refused(f"nothing is pending for {naming.display(record.name)}", errno.ENOENT)
        plain, _source = shown.name_without(record.domain)
        if plain == shown.on_the_way(record.key.uuid):
            name = naming.display(record.name)
            raise Refused(f"{name} has given its old name to another guest: rename it instead", errno.EBUSY)
        await self._ask(self._wish(record, plain))

    async def _ask(self, *wishes: Wished) -> None:
        for wish in wishes:
            domain = self._domain(wish)
            state = self._readers[domain.connection].state
            if not state.connected:
                raise Unreachable(state.error or "not connected")
            if not shown.can_ask(domain):
                what = (
                    "'namefs' is not the first of this connection's names: its guests are renamed elsewhere"
                )
                raise Refused(what, errno.EPERM)
        await self._apply(*wishes)

    def _domain(self, wish: Wished) -> Domain:
        record = self._view.index.owner(wish.key.uuid)
        if record is None:
            raise Refused("the guest is gone", errno.ENOENT)
        return record.domain

    def _wish(self, record: Record, new: str) -> Wished:
        before, follows = self._view.index.asked.get(record.key.guest), self._follows(record)
        asked_ns = max(time.time_ns(), before.asked_ns + 1 if before else 0)
        plain, _source = shown.name_without(record.domain)
        # libvirt may be about to call it by what was asked for before; then it has to be called so again.
        name = None if new == plain and not (follows and self._is_pending(record)) else new
        return Wished(record.key.guest, Asked(name, asked_ns, follows))

    def _follows(self, record: Record) -> bool:
        """Whether libvirt's name is to be the shown one: not where people chose a name beside it."""
        return shown.name_without(record.domain)[1] == shown.LIBVIRT

    def _is_pending(self, record: Record) -> bool:
        asked = self._view.index.asked.get(record.key.guest)
        return asked is not None and asked.name is not None

    def _check_settled(self, *records: Record) -> None:
        for record in records:
            if self._view.index.is_fleeting(record.key.uuid) or not record.is_owner:
                raise Refused(
                    f"{naming.display(record.name)} is being migrated: wait for its end", errno.EBUSY
                )

    def _check_free(self, record: Record, new: str) -> None:
        if new == record.name:
            raise Refused(f"it is called {naming.display(new)} already", errno.EEXIST)
        if any(
            one.name == new and one.group == record.group and one.key.uuid != record.key.uuid
            for one in self._view.index.records.values()
        ):
            raise Refused(f"there is a guest called {naming.display(new)} already", errno.EEXIST)

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
        if "/" in new:
            what = (
                "'/' parts a group from its guests: which group a guest is in, its definition says"
                " (`group` in namefs.toml says where), and it changes there"
            )
            raise Refused(what, errno.EINVAL)
        if any(c in new for c in "\n\r\0"):
            raise Refused("a guest's name can't hold a line break or a NUL", errno.EINVAL)
        if len(raw) + _ADDED_BYTES > naming.ENTRY_MAX_BYTES:
            most = naming.ENTRY_MAX_BYTES - _ADDED_BYTES
            raise Refused(
                f"the name has {len(raw)} bytes, and libvirt can save {most} at most", errno.ENAMETOOLONG
            )

    async def in_the_way(self, record: Record, new: str) -> str | None:
        """What a rename by libvirt would destroy, or pick up by mistake, and what to do; None: nothing."""
        left = await trio.to_thread.run_sync(functools.partial(self._left_under, record, new))
        if left is None:
            return None
        return (
            f"{left} is left from an earlier guest of that name, and libvirt would delete it"
            " or start from it: move it away first"
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


@contextmanager
def _as_errnos() -> Iterator[None]:
    try:
        yield
    except naming.NotAnEntry as error:
        raise OSError(errno.EINVAL, str(error)) from error
    except Refused as error:
        raise OSError(error.errno, error.message) from error
    except Unreachable as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    except NamefsError as error:
        raise OSError(errno.EIO, str(error)) from error
