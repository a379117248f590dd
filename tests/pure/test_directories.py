"""Where libvirt 9.0.0 put the files of one guest, on a system, a session and an embedded daemon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs.layout.directories import Directories, for_uri


def directories(
    uri: str, *, root: str = "", uid: int = 1000, environ: dict[str, str] | None = None
) -> Directories | None:
    return for_uri(uri, root=root, home="/home/ann", environ=environ or {}, uid=uid)


SYSTEM = Directories(
    etc="/etc/libvirt/qemu",
    run="/run/libvirt/qemu",
    lib="/var/lib/libvirt/qemu",
    log="/var/log/libvirt/qemu",
    swtpm_log="/var/log/swtpm/libvirt/qemu",
    swtpm_state="/var/lib/libvirt/swtpm",
    store="/var/lib/libvirt/by-uuid",
    store_log="/var/log/libvirt/by-uuid",
)


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu+unix:///system",
        "qemu+unix:///system?socket=/run/other/libvirt-sock",
        "qemu:///system?mode=direct",
    ],
)
def test_a_system_daemon_has_the_hosts_directories(uri: str) -> None:
    assert directories(uri) == SYSTEM


def test_roots_session_is_the_system_daemon() -> None:
    assert directories("qemu:///session", uid=0) == SYSTEM
    assert directories("qemu:///session", uid=1000) != SYSTEM


def test_a_session_follows_the_xdg_directories() -> None:
    environ = {"XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k/", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert directories("qemu:///session", environ=environ) == Directories(
        etc="/c/libvirt/qemu",
        run="/run/user/1000/libvirt/qemu/run",
        lib="/c/libvirt/qemu",
        log="/k/libvirt/qemu/log",
        swtpm_log="/k/libvirt/qemu/log",
        swtpm_state="/c/libvirt/qemu/swtpm",
        store="/home/ann/.local/share/libvirt/by-uuid",
        store_log="/k/libvirt/by-uuid",
    )


@pytest.mark.parametrize(
    "environ", [{}, {"XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "XDG_RUNTIME_DIR": ""}]
)
def test_a_session_without_xdg_variables_lies_in_the_home(environ: dict[str, str]) -> None:
    assert directories("qemu+unix:///session", environ=environ) == Directories(
        etc="/home/ann/.config/libvirt/qemu",
        run="/home/ann/.cache/libvirt/qemu/run",
        lib="/home/ann/.config/libvirt/qemu",
        log="/home/ann/.cache/libvirt/qemu/log",
        swtpm_log="/home/ann/.cache/libvirt/qemu/log",
        swtpm_state="/home/ann/.config/libvirt/qemu/swtpm",
        store="/home/ann/.local/share/libvirt/by-uuid",
        store_log="/home/ann/.cache/libvirt/by-uuid",
    )


def test_a_relative_xdg_directory_is_refused() -> None:
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        directories("qemu:///session", environ={"XDG_CACHE_HOME": "cache"})


@pytest.mark.parametrize(
    ("query", "directory"),
    [
        ("root=/srv/demo", "/srv/demo"),
        ("a=b&root=/srv/demo/", "/srv/demo"),
        ("a=b;root=/srv/a+b%20c%FF", "/srv/a+b c\udcff"),
        ("root=/one&root=/two", "/one"),
    ],
)
def test_an_embedded_daemon_lies_below_its_root(query: str, directory: str) -> None:
    assert directories(f"qemu:///embed?{query}") == Directories(
        etc=f"{directory}/etc/qemu",
        run=f"{directory}/run/qemu",
        lib=f"{directory}/lib/qemu",
        log=f"{directory}/log/qemu",
        swtpm_log=f"{directory}/log/swtpm",
        swtpm_state=f"{directory}/lib/swtpm",
        store=f"{directory}/lib/by-uuid",
        store_log=f"{directory}/log/by-uuid",
    )


@pytest.mark.parametrize(
    "uri",
    [
        "test:///default",
        "test:///etc/guests.xml",
        "test+unix:///default?socket=/run/libvirt/libvirt-sock",
        "qemu+ssh://ann@host/system",
        "qemu+tcp://host/system",
        "qemu+tls://host/system",
        "qemu+libssh2://host/system",
        "qemu://host/system",
        "qemu+ext:///system?command=/bin/tunnel",
    ],
)
def test_a_daemon_elsewhere_has_no_files_here(uri: str) -> None:
    assert directories(uri) is None


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "system",
        "xen:///system",
        "lxc:///",
        "esx://host",
        "qemu:///",
        "qemu:///sytem",
        "qemu:///embed",
        "qemu:///embed?root=relative",
        "qemu://[/system",
        "qemu:///\nsystem/",
    ],
)
def test_what_is_no_uri_of_ours_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ValueError, match=r"URI|root=|IPv6") as refusal:
        directories(uri)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("root", ["/srv/b", "/srv/b/", "//srv/./a/../b"])
def test_a_second_system_daemon_lies_below_its_root(root: str) -> None:
    assert directories(
        "qemu+unix:///system?socket=/srv/b/run/libvirt/libvirt-sock", root=root
    ) == Directories(
        etc="/srv/b/etc/libvirt/qemu",
        run="/srv/b/run/libvirt/qemu",
        lib="/srv/b/var/lib/libvirt/qemu",
        log="/srv/b/var/log/libvirt/qemu",
        swtpm_log="/srv/b/var/log/swtpm/libvirt/qemu",
        swtpm_state="/srv/b/var/lib/libvirt/swtpm",
        store="/srv/b/var/lib/libvirt/by-uuid",
        store_log="/srv/b/var/log/libvirt/by-uuid",
        root="/srv/b",
    )


def test_the_hosts_own_root_is_none() -> None:
    assert directories("qemu:///system", root="/") == SYSTEM


@pytest.mark.parametrize(
    ("uri", "root"),
    [("qemu:///system", "b"), ("qemu:///session", "/b"), ("qemu:///embed?root=/srv/demo", "/b")],
)
def test_a_root_that_cannot_apply_is_refused(uri: str, root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        directories(uri, root=root)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (
            "/var/lib/libvirt/qemu/domain-1-web/monitor.sock",
            "/b/var/lib/libvirt/qemu/domain-1-web/monitor.sock",
        ),
        ("/var/lib/libvirt", "/b/var/lib/libvirt"),
        ("/run/libvirt/qemu/web.pid", "/b/run/libvirt/qemu/web.pid"),
        ("/var/run/libvirt/qemu/web.pid", "/b/run/libvirt/qemu/web.pid"),
        ("/etc/libvirt/qemu/web.xml", "/b/etc/libvirt/qemu/web.xml"),
        ("/var/log/libvirt/qemu/web.log", "/b/var/log/libvirt/qemu/web.log"),
        ("/var/log/swtpm/libvirt/qemu/web-swtpm.log", "/b/var/log/swtpm/libvirt/qemu/web-swtpm.log"),
        ("/var/cache/libvirt/qemu/x", "/b/var/cache/libvirt/qemu/x"),
        ("/var//lib/./libvirt/images/../qemu/x", "/b/var/lib/libvirt/qemu/x"),
        ("/var/lib/libvirt/../../../srv/web.img", "/var/lib/libvirt/../../../srv/web.img"),
        ("/var/lib/libvirt-other/web.img", "/var/lib/libvirt-other/web.img"),
        ("/var/run/other", "/var/run/other"),
        ("/srv/images/web.qcow2", "/srv/images/web.qcow2"),
        ("/dev/pts/3", "/dev/pts/3"),
    ],
)
def test_a_second_daemons_own_paths_are_seen_below_its_root(path: str, seen: str) -> None:
    second = directories("qemu:///system", root="/b")
    assert second is not None
    assert second.translate(path) == seen


@given(st.text())
def test_without_a_root_every_path_is_seen_as_it_is(path: str) -> None:
    assert SYSTEM.translate(path) == path


COMPONENTS = st.sampled_from(["var", "lib", "run", "libvirt", "etc", "log", "..", ".", "", "web"])


@given(st.lists(COMPONENTS))
def test_translation_never_leads_out_of_the_root_by_dots(components: list[str]) -> None:
    second = directories("qemu:///system", root="/b")
    assert second is not None
    path = "/" + "/".join(components)
    seen = second.translate(path)
    assert seen == path or ".." not in seen.split("/")
