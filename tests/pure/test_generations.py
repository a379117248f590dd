"""The definition for the target of a local migration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs import generations

STORE = "/store/5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55"
XML = f"""\
<domain type='kvm' id='3'>
  <name>web</name>
  <uuid>5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55</uuid>
  <os><nvram>{STORE}/nvram/VARS.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><source file='{STORE}/disks/vda.qcow2'/><target dev='vda'/></disk>
    <serial type='pty'><source path='/dev/pts/1'/><log file='{STORE}/log/serial0.log' append='on'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{STORE}/sockets/agent'/><target type='virtio' name='org.qemu.agent'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/elsewhere/agent'/><target type='virtio' name='org.example'/>
    </channel>
  </devices>
</domain>
"""


def test_what_belongs_to_a_process_moves_and_what_belongs_to_the_guest_stays() -> None:
    assert generations.moves(XML, STORE) == {
        f"{STORE}/log/serial0.log": f"{STORE}/generation-1/log/serial0.log",
        f"{STORE}/sockets/agent": f"{STORE}/generation-1/sockets/agent",
    }
    there = generations.moved(XML, STORE)
    assert there.replace("/generation-1", "") == XML
    assert there.count("/generation-1/") == 2


def test_there_and_back_is_the_same_byte_for_byte() -> None:
    assert generations.moved(generations.moved(XML, STORE), STORE) == XML


@given(st.text("ab/.g", max_size=12).filter(bool))
def test_a_path_and_its_counterpart_are_each_others(below: str) -> None:
    path = f"{STORE}/{below}"
    other = generations.counterpart(path, STORE)
    assert other is not None
    assert other != path
    assert generations.counterpart(other, STORE) == path


def test_what_is_not_in_the_store_has_none() -> None:
    assert generations.counterpart(f"{STORE}x/log", STORE) is None


def test_a_socket_whose_path_would_be_too_long_is_refused() -> None:
    long = "/store/" + "x" * 60
    with pytest.raises(generations.TooLong, match="107 bytes"):
        generations.moved(XML.replace(STORE, long + "/" + "y" * 30), long + "/" + "y" * 30)
