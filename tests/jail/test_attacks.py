"""Attacks of Python on files, processes, ids and networks: each stopped by the layer it names."""

from __future__ import annotations

import errno
import os

import pytest
from tests.jail.jails import SECRET, Attack, Given, Jail, World, alone, bare, full

from trivet_worker.wire import (
    ISOLATION_LANDLOCK,
    ISOLATION_MOUNT,
    ISOLATION_NETWORK,
    ISOLATION_PID,
    ISOLATION_SECCOMP,
    ISOLATION_UID,
)

_METADATA = "169.254.169.254"
_SOMEWHERE = "203.0.113.7"


def _path(path: str) -> Given:
    return lambda world: {"path": path}


def _folder(path: str) -> Given:
    return lambda world: {"folder": path}


def _secret(world: World) -> dict[str, str]:
    return {"path": str(world.host.secret)}


def _victims(**more: str) -> Given:
    return lambda world: {"pid": world.victim, **more}


def _file(name: str, function: str, given: Given, also: int = 0) -> Attack:
    return Attack(name, "files", function, ISOLATION_MOUNT, also, given)


_CONFINED = ISOLATION_LANDLOCK
_ROOTS = ISOLATION_LANDLOCK | ISOLATION_UID

FILES = [
    _file("read_a_file_of_the_host", "read", _secret),
    _file("read_by_a_link", "read_by_link", _secret),
    _file("read_above_the_root", "read_above_the_root", _secret),
    _file("read_by_the_root_of_a_process", "read_through_a_process", _secret),
    _file("list_a_folder_of_the_host", "list_folder", lambda w: {"path": str(w.host.folder)}),
    _file("write_to_a_folder_of_the_host", "create_in", lambda w: {"folder": str(w.host.folder)}),
    _file("read_the_tmp_of_another", "read", lambda w: {"path": f"{w.folder}/secret"}),
    _file("connect_to_a_socket", "connect_to_socket", lambda w: {"path": str(w.host.socket)}),
    _file("open_shadow", "open_for_reading", _path("/etc/shadow"), _ROOTS),
    _file("list_what_runs", "list_folder", _path("/run"), _CONFINED),
    _file("write_to_usr", "create_in", _folder("/usr"), _ROOTS),
    _file("write_to_etc", "create_in", _folder("/etc"), _ROOTS),
    _file("write_to_opt", "create_in", _folder("/opt"), _ROOTS),
    _file("write_to_the_code", "create_in", lambda w: {"folder": w.task_root}, _ROOTS),
    _file("open_kmsg", "open_for_reading", _path("/dev/kmsg"), _ROOTS),
    _file("open_the_maker_of_loops", "open_for_reading", _path("/dev/loop-control"), _ROOTS),
    _file("open_a_terminal", "open_for_reading", _path("/dev/ptmx"), _CONFINED),
    _file("see_the_keys", "read_what_is_there", _path("/proc/key-users")),
    _file("see_kernel_addresses", "see_kernel_addresses", lambda world: {}, _ROOTS),
    _file("see_the_cgroups", "list_folder", _path("/sys/fs/cgroup"), _CONFINED),
    _file(
        "write_a_release_agent",
        "open_for_writing",
        _path("/sys/fs/cgroup/memory/release_agent"),
        _ROOTS,
    ),
    _file("take_shared_memory", "take_shared_memory", lambda w: {"key": w.host.shared_memory}),
    _file(
        "open_a_message_queue", "open_message_queue", lambda w: {"name": w.host.queue}, _CONFINED
    ),
    Attack(
        "read_anothers_secret",
        "files",
        "read",
        ISOLATION_UID,
        ISOLATION_MOUNT | ISOLATION_LANDLOCK,
        lambda world: {"path": f"{world.folder}-stranger/secret"},
    ),
    Attack(
        "set_the_core_pattern",
        "files",
        "open_for_writing",
        ISOLATION_UID,
        ISOLATION_LANDLOCK,
        _path("/proc/sys/kernel/core_pattern"),
    ),
    Attack(
        "make_the_root_writable",
        "files",
        "remount_writable",
        ISOLATION_SECCOMP,
        ISOLATION_LANDLOCK | ISOLATION_UID,
    ),
    Attack(
        "take_tmp_away",
        "files",
        "unmount_tmp",
        ISOLATION_SECCOMP,
        ISOLATION_LANDLOCK | ISOLATION_UID,
    ),
]


def _process(name: str, function: str, given: Given, also: int = 0) -> Attack:
    return Attack(name, "processes", function, ISOLATION_PID, also, given)


PROCESSES = [
    _process("see_others", "see_others", lambda world: {}, _CONFINED),
    _process("see_command_lines", "see_command_lines", lambda world: {}, _CONFINED),
    _process("signal_a_neighbour", "signal_process", _victims(), _CONFINED),
    _process("know_a_stranger", "know_process", lambda world: {"pid": world.stranger}),
    _process("read_environ", "read_of_process", _victims(name="environ"), _CONFINED),
    _process("read_maps", "read_of_process", _victims(name="maps"), _CONFINED),
    _process("read_command_line", "read_of_process", _victims(name="cmdline"), _CONFINED),
    _process("list_descriptors", "list_descriptors_of", _victims(), _CONFINED),
    _process("open_memory", "open_memory_of", _victims(), _CONFINED),
    _process("join_namespaces", "join_namespaces_of", _victims(), _CONFINED),
    _process("hold_a_process", "hold_process", _victims()),
    _process("slow_a_process_down", "slow_process_down", _victims()),
    _process("bind_a_process", "bind_process", _victims()),
    _process("limit_a_process", "limit_process", _victims(), ISOLATION_SECCOMP),
    Attack(
        "read_environ_of_a_stranger",
        "processes",
        "read_of_process",
        ISOLATION_UID,
        ISOLATION_PID | ISOLATION_LANDLOCK | ISOLATION_MOUNT,
        lambda world: {"pid": world.stranger, "name": "environ"},
    ),
    Attack(
        "signal_a_stranger",
        "processes",
        "signal_process",
        ISOLATION_UID,
        ISOLATION_PID | ISOLATION_LANDLOCK,
        lambda world: {"pid": world.stranger},
    ),
]


def _id(name: str, function: str, given: Given = lambda world: {}, also: int = 0) -> Attack:
    return Attack(name, "identity", function, ISOLATION_UID, also, given)


IDS = [
    _id("become_root", "become_root"),
    _id("become_roots_group", "become_roots_group"),
    _id("join_groups", "join_groups"),
    _id("become_another", "become_another_tenant", lambda w: {"uid": w.strangers_uid}),
    _id("give_a_file_away", "give_a_file_away"),
    _id("raise_capabilities", "raise_capabilities"),
    _id("make_a_device", "make_device", also=ISOLATION_LANDLOCK),
    _id("rename_the_host", "rename_the_host"),
    _id("real_time", "run_in_real_time"),
    _id("push_ahead", "push_ahead"),
    _id("lock_memory", "lock_memory"),
    _id("change_securebits", "keep_securebits"),
    _id("bind_low_port", "bind_low_port"),
    _id("raw_socket", "send_raw"),
    _id("packet_socket", "send_packets", also=ISOLATION_SECCOMP),
]


def _reach(
    name: str, function: str, given: Given = lambda world: {}, also: int = ISOLATION_LANDLOCK
) -> Attack:
    return Attack(name, "network", function, ISOLATION_NETWORK, also, given)


def _hosts_port(world: World) -> dict[str, int | str]:
    return {"host": "127.0.0.1", "port": world.host.port}


NETWORK = [
    _reach("loopback_of_the_host", "connect", _hosts_port),
    _reach("any_name_of_the_host", "connect_any_family", lambda w: {"port": w.host.port}),
    _reach("port_of_a_neighbour", "connect", lambda w: {"host": "127.0.0.1", "port": w.port}),
    _reach("abstract_socket", "connect_to_abstract", lambda w: {"name": w.host.abstract}),
    _reach("abstract_of_a_neighbour", "connect_to_abstract", lambda w: {"name": w.abstract}),
    _reach("way_to_the_metadata", "route_to", lambda w: {"host": _METADATA}, 0),
    _reach("way_to_the_internet", "route_to", lambda w: {"host": _SOMEWHERE}, 0),
    _reach("see_devices", "see_devices", also=0),
    _reach("see_connections", "see_connections", lambda w: {"port": w.host.port}, 0),
]


def _of_node(
    name: str, function: str, layer: int, also: int = 0, given: Given = lambda world: {}
) -> Attack:
    return Attack(f"js_{name}", "hostile", function, layer, also, given, "node")


_JOINED = ISOLATION_NETWORK
NODE = [
    _of_node("read", "read", ISOLATION_MOUNT, given=_secret),
    _of_node("list", "list", ISOLATION_MOUNT, given=lambda w: {"path": str(w.host.folder)}),
    _of_node("write", "createIn", ISOLATION_MOUNT, given=lambda w: {"folder": str(w.host.folder)}),
    _of_node("write_usr", "createIn", ISOLATION_MOUNT, _ROOTS, _folder("/usr")),
    _of_node("open_shadow", "openForWriting", ISOLATION_MOUNT, _ROOTS, _path("/etc/shadow")),
    _of_node(
        "unix", "connectToSocket", ISOLATION_MOUNT, given=lambda w: {"path": str(w.host.socket)}
    ),
    _of_node("connect", "connect", _JOINED, ISOLATION_LANDLOCK, _hosts_port),
    _of_node("metadata", "routeTo", _JOINED, given=lambda w: {"host": _METADATA}),
    _of_node("see_others", "seeOthers", ISOLATION_PID, ISOLATION_LANDLOCK),
    _of_node("signal", "signalProcess", ISOLATION_PID, ISOLATION_LANDLOCK, _victims()),
    _of_node(
        "environ", "readOfProcess", ISOLATION_PID, ISOLATION_LANDLOCK, _victims(name="environ")
    ),
    _of_node("maps", "readOfProcess", ISOLATION_PID, ISOLATION_LANDLOCK, _victims(name="maps")),
    _of_node("become_root", "becomeRoot", ISOLATION_UID),
    _of_node("join_groups", "joinGroups", ISOLATION_UID),
    _of_node("push_ahead", "pushAhead", ISOLATION_UID),
    _of_node("bind_low_port", "bindLowPort", ISOLATION_UID),
    _of_node("unshare", "unshareUser", ISOLATION_SECCOMP),
    _of_node("mount", "mountInUserNamespace", ISOLATION_SECCOMP, ISOLATION_LANDLOCK),
]

ATTACKS = [*FILES, *PROCESSES, *IDS, *NETWORK, *NODE]


@pytest.mark.parametrize(("jail", "attack"), full(ATTACKS), indirect=["jail"])
def test_it_is_stopped(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    assert not answer["escaped"], answer
    assert SECRET not in answer["message"]


@pytest.mark.parametrize(("jail", "attack"), alone(ATTACKS), indirect=["jail"])
def test_the_layer_stops_it_alone(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    assert not answer["escaped"], answer


@pytest.mark.parametrize(("jail", "attack"), bare(ATTACKS), indirect=["jail"])
def test_without_the_layer_it_succeeds(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    path = attack.given(jail.world).get("path", "/")
    if answer["errno"] == errno.ENETUNREACH or not os.path.exists(path):
        pytest.skip(f"this machine has no such thing to attack: {answer['message']}")
    assert answer["escaped"], answer
