"""The configuration: its file, what overrides it, and what is refused."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs import config
from namefs.config import Config, Connection, check_overlap, load
from namefs.errors import ExitCode, NamefsError
from namefs.name_sources import NameSources
from namefs.toml_lines import key_lines, line_of

EXAMPLE = Path(__file__).parent.parent / "contrib" / "namefs.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "namefs.toml"


def loaded(
    file: Path,
    text: str,
    connect: list[str] | None = None,
    mountpoint: str | None = None,
    mount_options: str | None = None,
) -> Config:
    file.write_text(text)
    return load(str(file), environ={}, connect=connect, mountpoint=mountpoint, mount_options=mount_options)


def refusal(file: Path, text: str) -> str:
    with pytest.raises(NamefsError) as caught:
        loaded(file, text)
    assert caught.value.exit_code is ExitCode.CONFIGURATION
    return str(caught.value).removeprefix(f"{file}:")


def test_an_empty_file_is_the_defaults(file: Path) -> None:
    assert loaded(file, "") == Config()
    assert Config().connections == (Connection(uri="qemu:///system", label="local", root=""),)


def test_the_default_file_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", str(tmp_path / "none.toml"))
    assert load(environ={}) == Config()


def test_the_default_file_is_read_if_it_exists(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('journal = "/j"')
    monkeypatch.setattr(config, "DEFAULT_FILE", str(file))
    assert load(environ={}).journal == "/j"


def test_a_file_that_is_asked_for_must_exist(file: Path) -> None:
    with pytest.raises(NamefsError, match="No such file") as caught:
        load(str(file))
    assert caught.value.exit_code is ExitCode.CONFIGURATION


def test_a_directory_is_no_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(NamefsError, match="directory") as caught:
        load(str(tmp_path))
    assert caught.value.exit_code is ExitCode.CONFIGURATION


def test_every_key_is_read(file: Path) -> None:
    text = """
        mountpoint = "/mnt/guests"
        journal = "/srv/index"
        runtime-directory = "/run/other"
        mount-options = ["noatime", "max_read=65536"]
        [[connection]]
        uri = "qemu:///session"
        label = "mine"
        root = "/srv/second"
        names = ["title", "xpath:metadata/acme:vm/@name"]
        group = "xpath:metadata/acme:vm/acme:team"
        [connection.namespaces]
        acme = "https://acme.example/vm"
        [connection.directories]
        etc = "/a"
        run = "/b"
        lib = "/c"
        log = "/d"
        swtpm-log = "/e"
        swtpm-state = "/f"
        """
    read = loaded(file, text)
    assert read == Config(
        mountpoint="/mnt/guests",
        journal="/srv/index",
        runtime_directory="/run/other",
        mount_options=("noatime", "max_read=65536"),
        connections=(
            Connection(
                uri="qemu:///session",
                label="mine",
                root="/srv/second",
                directories={
                    "etc": "/a",
                    "run": "/b",
                    "lib": "/c",
                    "log": "/d",
                    "swtpm-log": "/e",
                    "swtpm-state": "/f",
                },
                names=NameSources(
                    names=("title", "xpath:metadata/acme:vm/@name", "libvirt"),
                    group="xpath:metadata/acme:vm/acme:team",
                    namespaces=(("acme", "https://acme.example/vm"),),
                ),
            ),
        ),
    )
    assert read.control_socket == "/run/other/control.sock"
    assert read.spool_of(read.connections[0]) == "/srv/second/run/other/spool", "a second libvirt's own /run"


def test_paths_are_read_without_needless_slashes(file: Path) -> None:
    assert loaded(file, 'mountpoint = "//mnt//guests/"').mountpoint == "/mnt/guests"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nmountpint = '/x'", "2: unknown key 'mountpint'; known are mountpoint, journal, "),
        ("[[connection]]\n\n'u r i' = 'x'", "3: unknown key 'u r i' in [connection]; known are uri, "),
        (
            "[[connection]]\n[connection.directories]\ntmp='/x'",
            "3: unknown key 'tmp' in [connection.directories]",
        ),
        ("[mount]\npoint = '/x'", "1: unknown key 'mount'; "),
        ("\nmountpoint.x = 1", "2: mountpoint must be a string"),
        ("# a\njournal = 3", "2: journal must be a string"),
        ("journal = ''", "1: journal is empty"),
        ('journal = "/a\\u0000b"', "1: journal holds characters that cannot be shown"),
        ("journal = 'index'", "1: journal must be an absolute path, and 'index' is not"),
        ("mount-options = 'noatime'", "1: mount-options must be a list of strings"),
        ("\nmount-options = [\n'a',\n1]", "2: mount-options must be a string"),
        ("mount-options = ['a,b']", "1: 'a,b' in mount-options: write one string for each option"),
        ("\nconnection = 'qemu:///system'", "2: write [[connection]], with double brackets, "),
        ("\n[connection]\nuri = 'x'", "2: write [[connection]], with double brackets, "),
        ("connection = []", "1: 0 [[connection]] tables; the view can show 1 to 8 libvirts"),
        (
            "[[connection]]\nuri='a'\n[[connection]]\nuri='b'",
            "3: two connections have the label 'local'",
        ),
        ("[[connection]]\nlabel = 'a'\nuri = 1.5", "3: uri must be a string"),
        ("[[connection]]\nroot = 'x'", "2: root must be an absolute path"),
        ("[[connection]]\ndirectories = '/x'", "2: directories must be a table, [connection.directories]"),
        ("connection = [\n{uri = 5}]", "1: uri must be a string"),
        ("[[connection]]\nnames = 'title'", "2: names must be a list of strings"),
        ("[[connection]]\nnames = ['title', '']", "2: names is empty"),
        (
            "[[connection]]\n\nnames = [\n'tilte']",
            "3: names: 'tilte' is no source; known are namefs, nova, title, opennebula, libvirt, xpath:",
        ),
        ("[[connection]]\nnames = ['title', 'title']", "2: names: 'title' is there twice"),
        ("[[connection]]\nnames = ['libvirt', 'title']", "2: names: every guest has a libvirt name: "),
        ("[[connection]]\nnames = ['xpath:']", "2: names: 'xpath:' names no element"),
        ("[[connection]]\nnames = ['xpath:metadata//@x']", "2: names: 'xpath:metadata//@x' names no element"),
        ("[[connection]]\nnames = ['xpath:/domain/title']", "2: names: 'xpath:/domain/title' starts with /"),
        (
            "[[connection]]\nnames = ['xpath:title[']",
            "2: names: 'xpath:title[' is not among the XPath that Python's ElementTree supports",
        ),
        (
            "[[connection]]\nnames = ['xpath:title/text()']",
            "2: names: 'xpath:title/text()' is not among the XPath ",
        ),
        (
            "[[connection]]\nnames = ['xpath:metadata/x:vm']",
            "2: names: 'xpath:metadata/x:vm': the prefix 'x' is not declared in [connection.namespaces]",
        ),
        (
            "[[connection]]\nnames = ['xpath:metadata/@x:name']\nnamespaces.y = 'urn:y'",
            "2: names: 'xpath:metadata/@x:name': the prefix 'x' is not declared",
        ),
        (
            "[[connection]]\nuri = 'a'\ngroup = 'nova'",
            "3: group: 'nova' is no source; known are nova:project, nova:user, ",
        ),
        ("[[connection]]\ngroup = 'xpath:x:y'", "2: group: 'xpath:x:y': the prefix 'x' is not declared"),
        ("[[connection]]\nnamespaces = 'urn:x'", "2: namespaces must be a table, [connection.namespaces]"),
        ("[[connection]]\n[connection.namespaces]\nx = 1", "3: x must be a string"),
        (
            "[[connection]]\n[connection.namespaces]\nx = 'urn:x'\n'a b' = 'urn:y'",
            "4: namespaces: 'a b' can't be a prefix",
        ),
        ("a = 1\na = 2\n", " not TOML: Cannot overwrite a value (at line 2"),
        ("a = " + "[" * 5000, " not TOML: "),
    ],
)
def test_what_is_refused_is_named_with_its_line(file: Path, text: str, message: str) -> None:
    assert refusal(file, text).startswith(message)


def test_bytes_that_are_not_utf8_are_refused_with_their_line(file: Path) -> None:
    file.write_bytes(b"\n\nmountpoint = '/\xff'")
    with pytest.raises(NamefsError, match=":3: not UTF-8") as caught:
        load(str(file))
    assert caught.value.exit_code is ExitCode.CONFIGURATION


def test_the_command_line_comes_first_then_the_environment_then_the_file(file: Path) -> None:
    file.write_text("[[connection]]\nuri = 'file'")
    environ = {"LIBVIRT_DEFAULT_URI": "environment"}
    assert load(str(file), connect=["command"], environ=environ).connections[0].uri == "command"
    assert load(str(file), environ=environ).connections[0].uri == "environment"
    assert load(str(file), environ={"LIBVIRT_DEFAULT_URI": ""}).connections[0].uri == "file"


def test_the_files_directories_go_with_its_own_uri_only(file: Path) -> None:
    text = "[[connection]]\nuri = 'a:///'\nlabel = 'l'\nroot = '/r'\ndirectories.etc = '/e'"
    assert loaded(file, text, connect=["a:///"]).connections[0].root == "/r"
    assert loaded(file, text, connect=["b:///"]).connections == (Connection(uri="b:///", label="l"),)


def test_names_come_from_where_the_file_says_with_another_uri_too(file: Path) -> None:
    text = "[[connection]]\nuri = 'a:///'\nnames = ['title']\ngroup = 'nova:user'"
    assert loaded(file, text, connect=["b:///"]).connections[0].names == NameSources(("title",), "nova:user")


def test_namespaces_count_wherever_in_the_table_they_stand(file: Path) -> None:
    text = "[[connection]]\nnamespaces.nova = 'urn:mine'\nnames = ['xpath:metadata/nova:name']"
    assert loaded(file, text).connections[0].names.namespaces == (("nova", "urn:mine"),)


def test_the_mount_point_of_the_command_line_may_be_relative(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert loaded(file, "mountpoint = '/x'", mountpoint="by-name/").mountpoint == str(tmp_path / "by-name")


def test_an_empty_mount_point_is_not_the_current_directory(file: Path) -> None:
    with pytest.raises(NamefsError) as caught:
        loaded(file, "", mountpoint="")
    assert caught.value.exit_code is ExitCode.USAGE


def test_mount_options_of_the_command_line_are_added(file: Path) -> None:
    options = loaded(file, "mount-options = ['a']", mount_options="b,c=d,").mount_options
    assert options == ("a", "b", "c=d")


@pytest.mark.parametrize(
    ("mountpoint", "served", "relation"),
    [
        ("m/qemu", "m/qemu", "is a directory that the view serves"),
        ("m/qemu/by-name", "m/qemu", "lies in"),
        ("m", "m/qemu", "would hide"),
        ("link", "m/qemu", "is a directory that the view serves"),
        ("link/new", "m/qemu", "lies in"),
        ("m/qemu/new", "link", "lies in"),
        ("/", "m/qemu", "would hide"),
    ],
)
def test_a_mount_point_that_overlaps_what_is_served_is_refused(
    tmp_path: Path, mountpoint: str, served: str, relation: str
) -> None:
    (tmp_path / "m" / "qemu").mkdir(parents=True)
    (tmp_path / "link").symlink_to("m/qemu")
    with pytest.raises(NamefsError, match=relation) as caught:
        check_overlap(str(tmp_path / mountpoint), ["/elsewhere", str(tmp_path / served)])
    assert caught.value.exit_code is ExitCode.MOUNT_FAILED


def test_a_mount_point_beside_what_is_served_is_taken(tmp_path: Path) -> None:
    (tmp_path / "qemu").mkdir()
    check_overlap(str(tmp_path / "qemu-by-name"), [str(tmp_path / "qemu"), str(tmp_path / "none")])


def test_the_example_file_says_what_holds_without_it(file: Path) -> None:
    assert loaded(file, EXAMPLE.read_text()) == Config()


def test_what_the_example_file_has_as_comments_can_be_used(file: Path) -> None:
    lines = [
        line
        for line in EXAMPLE.read_text().splitlines()
        if not line.startswith(("mount-options =", "mountpoint =", "extra-directories ="))
    ]
    text = "\n".join(re.sub(r"^# (?=\[connection\.|[a-z-]+ = )", "", line) for line in lines)
    connection = loaded(file, text).connections[0]
    assert connection.root
    assert connection.names.group
    assert connection.names.namespaces
    assert tuple(connection.directories) == config.DIRECTORIES


def test_the_example_file_has_every_key() -> None:
    text = EXAMPLE.read_text()
    for key in (
        "mountpoint",
        "journal",
        "runtime-directory",
        "mount-options",
        "uri",
        "label",
        "root",
        "names",
        "group",
    ):
        assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), key


# Statements of TOML that are hard to scan; {key} is a key that the text has once.
STATEMENTS = (
    "{key} = 1 # = [ ' \" \n",
    '{key} = "a # \\" = [ \\\\"\n',
    "{key} = '\\'\n",
    '{key} = """\nx = 1\n[y]\n\\""" ""\\\n  """ # c\n',
    "{key} = '''\n[[y]]\n'' '''\n",
    '{key} = """a""""\n',
    '{key} = """a"""""\n',
    "{key} = '''a''''\n",
    "{key} = [ # ]\n  [1, '''\n]''', \"]\"], {{a = 1, b.c = [2]}},\n]\n",
    "  {key} . sub = 1979-05-27T07:32:00Z\r\n",
    '"{key}" = {{ x = "}}" }}\n',
    "'{key}'={{}}\n",
    "# {key} = 1\n\n",
    "\n[{key}]\n",
    "[ {key} . 'x.y' ] # c\n",
    "[[{key}]]\n[[{key}]]\n",
    "[[{key}.deep]]\n",
)


@given(st.lists(st.sampled_from(STATEMENTS)), st.booleans())
def test_every_key_has_the_line_that_it_stands_on(statements: list[str], final_newline: bool) -> None:
    texts = [
        statement.format(key=f"key-{number}-{string.ascii_letters[number % 52]}")
        for number, statement in enumerate(statements)
    ]
    text = "".join(texts)
    if not final_newline:
        text = text.removesuffix("\n").removesuffix("\r")
    tomllib.loads(text)
    expected = {}
    line = 1
    for number, one in enumerate(texts):
        key = f"key-{number}-{string.ascii_letters[number % 52]}"
        if not one.lstrip().startswith("#"):
            expected[key] = line + (len(one) - len(one.lstrip("\n")))
        line += one.count("\n")
    found: dict[str, int] = {}
    for path, at in key_lines(text).items():
        for part in path:
            if isinstance(part, str) and part.startswith("key-"):
                found[part] = min(at, found.get(part, at))
    assert found == expected


def test_a_key_in_an_inline_table_has_the_line_of_the_key_around_it() -> None:
    lines = key_lines("\n\na = [\n  {b = 1},\n]")
    assert line_of(lines, ("a", 0, "b")) == 3


def test_elements_of_an_array_of_tables_have_lines_of_their_own() -> None:
    lines = key_lines("[[a]]\nx = 1\n[a.b]\n[[a]]\nx = 2\n[a.b]\ny = 3")
    assert [lines["a", 0, "x"], lines["a", 1, "x"], lines["a", 1, "b", "y"]] == [2, 5, 7]
    assert [lines["a", 0], lines["a", 1], lines["a",]] == [1, 4, 1]


def test_several_libvirts_are_told_by_the_file_or_the_command_line(file: Path) -> None:
    text = "[[connection]]\nuri='a:///'\n[[connection]]\nuri='b:///'\nlabel='second'\nroot='/r'"
    assert [(c.uri, c.label) for c in loaded(file, text).connections] == [
        ("a:///", "local"),
        ("b:///", "second"),
    ]
    socket = "qemu+unix:///system?socket=/srv/b/run/libvirt/libvirt-sock"
    given = loaded(file, text, connect=["b:///", socket, "c:///"]).connections
    assert [(c.uri, c.label, c.root) for c in given] == [
        ("b:///", "second", "/r"),
        (socket, "local", "/srv/b"),
        ("c:///", "local-2", ""),
    ]
    for uris in (["a:///", "a:///"], [f"a{number}:///" for number in range(9)]):
        with pytest.raises(NamefsError) as refused:
            loaded(file, text, connect=uris)
        assert refused.value.exit_code is ExitCode.USAGE


def test_two_connections_differ_in_label_and_uri(file: Path) -> None:
    for second in ("uri='a:///'\nlabel='x'", "uri='b:///'\nlabel='local'"):
        with pytest.raises(NamefsError, match="two connections have"):
            loaded(file, f"[[connection]]\nuri='a:///'\n[[connection]]\n{second}")
