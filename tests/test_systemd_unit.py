"""What ``systemd/namefs.service`` must and must not say; systemd itself judges its syntax."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd" / "namefs.service"

# Each gives the service a mount namespace of its own, from which the view does not reach the host
# (systemd.exec(5); Ceph shipped a unit with this fault, ceph issue 71851).
OWN_MOUNT_NAMESPACE = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories", "ExtensionImages",
    "InaccessiblePaths", "MountAPIVFS", "MountFlags", "MountImages", "NoExecPaths", "PrivateDevices",
    "PrivateIPC", "PrivateMounts", "PrivateNetwork", "PrivateTmp", "PrivateUsers", "ProcSubset",
    "ProtectClock", "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs",
    "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "ReadOnlyPaths",
    "ReadWritePaths", "RootDirectory", "RootImage", "TemporaryFileSystem",
}  # fmt: skip

DEPENDENCIES = {
    "Before", "BindsTo", "BoundBy", "Conflicts", "Also", "JoinsNamespaceOf", "OnFailure", "OnSuccess",
    "PartOf", "PropagatesReloadTo", "PropagatesStopTo", "ReloadPropagatedFrom", "RequiredBy", "Requires",
    "Requisite", "StopPropagatedFrom", "Upholds", "UpheldBy", "Wants",
}  # fmt: skip


def directives() -> list[tuple[str, str, str]]:
    """(section, key, value) of each line; a unit may repeat a key, so no dictionary and no configparser."""
    found = []
    section = ""
    for raw in UNIT.read_text().splitlines():
        line = raw.strip()
        if line.startswith("["):
            section = line
        elif line and line[0] not in "#;":
            key, equals, value = line.partition("=")
            assert equals, line
            assert not line.endswith("\\"), "a continuation, which this parser does not know"
            found.append((section, key, value))
    return found


def values(key: str) -> list[str]:
    return [value for _, this, value in directives() if this == key]


def test_the_view_is_mounted_where_the_host_sees_it() -> None:
    assert not {key for _, key, _ in directives()} & OWN_MOUNT_NAMESPACE


def test_libvirt_does_not_depend_on_namefs_in_any_way() -> None:
    said = {key: value for _, key, value in directives() if key in DEPENDENCIES}
    assert said == {}


def test_it_starts_after_either_kind_of_libvirt_daemon() -> None:
    assert {"libvirtd.service", "virtqemud.service"} <= set(" ".join(values("After")).split())


def test_it_is_ready_when_the_mount_answers_and_not_before() -> None:
    assert values("Type") == ["notify"]
    assert values("NotifyAccess") == ["main"]
    assert values("ExecStart") == ["/usr/bin/namefs mount"]


def test_it_is_started_again_after_a_failure_however_often() -> None:
    assert values("Restart") == ["on-failure"]
    assert values("StartLimitIntervalSec") == ["0"]


@pytest.mark.parametrize(
    ("result", "detached"),
    [("timeout", True), ("success", False), ("signal", False), ("core-dump", False), ("exit-code", False)],
)
def test_after_a_crash_the_mount_says_enotconn_until_the_next_daemon(
    result: str, detached: bool, tmp_path: Path
) -> None:
    """An empty directory would look like every guest deleted. After a stop by hand no next one comes."""
    command = tmp_path / "namefs"
    command.write_text("#!/bin/sh\necho detached\n")
    command.chmod(0o755)
    (stop,) = values("ExecStopPost")
    script = stop.removeprefix("-/bin/sh -c '").removesuffix("'").replace("$$", "$")
    done = subprocess.run(
        ["/bin/sh", "-c", script.replace("/usr/bin/namefs", str(command))],
        env={"SERVICE_RESULT": result},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ("detached\n" if detached else "")


def test_the_spool_is_there_before_the_daemon_and_stays_after_it() -> None:
    assert values("RuntimeDirectory") == ["namefs namefs/spool"]
    assert values("RuntimeDirectoryMode") == ["0700"]
    assert values("RuntimeDirectoryPreserve") == ["yes"]


def test_nothing_in_the_unit_is_unknown_to_systemd(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is in the package systemd, which contrib/test installs"
    # It wants the programs to exist, and namefs need not be installed to be tested.
    unit = tmp_path / "namefs.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/namefs", "/bin/true"))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    # An unknown key is only a warning, with exit code 0.
    assert (done.returncode, [line for line in done.stderr.splitlines() if "namefs" in line]) == (0, [])
