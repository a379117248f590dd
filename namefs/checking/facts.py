"""What the rules of `namefs check` look at: one moment of libvirt, index, store, files and hook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from namefs.index import Index
    from namefs.model import Domain


@dataclass(frozen=True, slots=True)
class Hook:
    """libvirt's hook of a connection. ``seen``: libvirt calls it; None: it can't be told."""

    path: str
    installed: bool
    executable: bool = True
    seen: bool | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """What there is of one connection.

    ``domains`` is None if libvirt can't be reached, for ``error``. ``missing`` are paths of a domain's
    definition that do not exist. ``store`` and ``logs`` are the guests that the store has directories for;
    ``log_names`` are the names by which logs lie in libvirt's log directory, ``unfinished`` the guests whose
    adoption was interrupted. ``left_nvram`` are UEFI variables under a name that their guest had before, and
    ``lost_checkpoints`` checkpoints that a rename put among a guest's snapshots.
    """

    label: str
    domains: tuple[Domain, ...] | None
    error: str | None = None
    missing: Mapping[UUID, tuple[str, ...]] = field(default_factory=dict)
    store: Mapping[UUID, str] = field(default_factory=dict)
    logs: Mapping[UUID, str] = field(default_factory=dict)
    log_names: Mapping[str, str] = field(default_factory=dict)
    unfinished: frozenset[UUID] = frozenset()
    left_nvram: Mapping[UUID, tuple[str, ...]] = field(default_factory=dict)
    lost_checkpoints: Mapping[UUID, tuple[str, ...]] = field(default_factory=dict)
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it. ``view``: "serving", "dead" (its daemon died) or "none"."""

    index: Index
    connections: tuple[Connected, ...]
    view: str
    mountpoint: str
    daemon: bool
