"""What lies in deploy/ holds together: names, ports and paths that are really there."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.house.tree import ROOT

from trivet.launcher.refusals import EXIT_UNUSABLE
from trivet.settings import Settings, read_settings

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "trivet.service"
SETTINGS = {f"TRIVET_{field.name.upper()}" for field in fields(Settings)}
# Read by the command line itself.
OTHER_VARIABLES = {"TRIVET_COMMAND", "TRIVET_CONFIG", "TRIVET_LOG_LEVEL"}

DATA = "/var/lib/trivet"
HOME = "/opt/trivet"


class _Options(dict[str, str]):
    """Options of a unit; the values of one that comes again are joined, as systemd joins them."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and key in self and isinstance(self[key], list):
            value = [*self[key], *value]
        super().__setitem__(key, value)


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(
        dict_type=_Options, strict=False, comment_prefixes=("#",), delimiters=("=",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names in their own case
    parser.read(UNIT)
    return parser


def compose() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def instructions(name: str) -> Iterator[tuple[str, str]]:
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def test_every_variable_is_a_setting() -> None:
    names = {
        name
        for path in DEPLOY.iterdir()
        if path.is_file()
        for name in re.findall(r"\bTRIVET_[A-Z_]+\b", path.read_text())
    }
    assert names - SETTINGS - OTHER_VARIABLES == set()


# ---------------------------------------------------------------------------- systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("trivet")
    text = UNIT.read_text().replace(f"{HOME}/.venv/bin/trivet", str(program))
    here = tmp_path / UNIT.name
    here.write_text(text)
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_the_unit_starts_what_run_installs() -> None:
    service = unit()["Service"]
    program, verb = shlex.split(service["ExecStart"])
    assert (program, verb) == (f"{HOME}/.venv/bin/trivet", "up")
    assert "venv=$here/.venv" in (ROOT / "run").read_text()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "trivet" in scripts
    assert "TRIVET_COMMAND=/opt/trivet/run" in service["Environment"].splitlines()


def test_its_data_folder_is_the_one_it_may_write() -> None:
    service = unit()["Service"]
    assert f"TRIVET_DATA={DATA}" in service["Environment"].splitlines()
    assert service["StateDirectory"] == "trivet"
    read_settings(variables={"TRIVET_DATA": DATA})  # short enough for its sockets


def test_the_unit_leaves_to_trivet_what_it_needs() -> None:
    service = unit()["Service"]
    assert service["Delegate"] == "yes"
    assert "RestrictNamespaces" not in service
    assert "@mount" not in service["SystemCallFilter"]
    # Environments get host names, devices and networks of their own.
    for option in ("ProtectHostname", "PrivateDevices", "PrivateNetwork", "ProtectKernelTunables"):
        assert option not in service
    assert "ProtectControlGroups" not in service
    capabilities = set(service["CapabilityBoundingSet"].split())
    assert capabilities >= {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"}
    assert {"AF_UNIX", "AF_INET", "AF_NETLINK"} <= {*service["RestrictAddressFamilies"].split()}
    assert int(service["RestartPreventExitStatus"]) == EXIT_UNUSABLE
    drain_s = re.search(r"^DRAIN_S = ([\d.]+)", _source("supervisor/__main__.py"), re.MULTILINE)
    assert drain_s
    assert int(service["TimeoutStopSec"]) > float(drain_s[1])


def test_what_is_deployed_contains_hostile_code_or_does_not_start() -> None:
    assert "TRIVET_ISOLATION_MINIMUM=L3" in unit()["Service"]["Environment"].splitlines()
    trivet = compose()["services"]["trivet"]
    assert read_settings(variables=trivet["environment"]).isolation_minimum == "L3"
    assert {"SYS_ADMIN", "NET_ADMIN"} <= set(trivet["cap_add"])
    assert "writable-cgroups=true" in trivet["security_opt"]


def _source(name: str) -> str:
    return (ROOT / "platform" / "trivet" / name).read_text()


# --------------------------------------------------------------------------- containers


def test_the_image_copies_what_is_there_and_all_that_run_needs() -> None:
    copied: list[str] = []
    for word, rest in instructions("Containerfile"):
        if word == "COPY":
            *sources, _ = rest.split()
            copied += sources
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {Path(package).parts[0] for package in packages}
    needed |= {"run", "pyproject.toml", "requirements.txt", project["project"]["readme"]}
    needed |= {"deploy/locks"} if "deploy/locks/" in (ROOT / "run").read_text() else set()
    assert needed <= set(copied)


def test_the_image_listens_where_it_says() -> None:
    found = dict(instructions("Containerfile"))
    defaults = Settings()
    assert found["EXPOSE"].split() == [str(defaults.aws_port), str(defaults.http_port)]
    variables = dict(pair.split("=", 1) for pair in found["ENV"].split())
    assert (variables["TRIVET_DATA"], variables["TRIVET_HOST"]) == (DATA, "0.0.0.0")
    assert found["WORKDIR"] == HOME
    assert variables["PATH"].startswith(f"{HOME}/.venv/bin:")
    assert found["VOLUME"] == DATA
    health = found["HEALTHCHECK"]
    assert f"http://127.0.0.1:{defaults.aws_port}/health" in health
    program = re.search(r'"-c",\s+"(.*?)"\]', health)
    assert program
    compile(program[1], "healthcheck", "exec")


def test_compose_joins_what_belongs_together() -> None:
    whole = compose()
    trivet, valkey = whole["services"]["trivet"], whole["services"]["valkey"]
    assert trivet["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert "healthcheck" in valkey
    settings = read_settings(variables=trivet["environment"])
    assert settings.durable_url == "redis://valkey:6379/0"
    assert settings.durability == "strict"
    defaults = Settings()
    for published in trivet["ports"]:
        host, outside, inside = published.split(":")
        assert host == "127.0.0.1"
        assert int(outside) == int(inside)
        assert int(inside) in (defaults.aws_port, defaults.http_port)
    assert "ports" not in valkey  # it asks for no password
    build = trivet["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve().is_file()
    mounts = dict(volume.split(":")[:2] for volume in [*trivet["volumes"], *valkey["volumes"]])
    assert mounts.pop("./valkey.conf") == valkey["command"][1]
    assert set(mounts) == set(whole["volumes"])
    assert mounts["data"] == DATA
    assert mounts["durable"] == valkey["command"][-1]
