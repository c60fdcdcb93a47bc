"""trivet aws: an AWS CLI, PATH's or our own, that speaks to this platform and to nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import typer

from trivet.cli.environment import environment_of
from trivet.cli.running import find_running, not_running
from trivet.errors import Unavailable
from trivet.settings import read_settings

# Words with which the AWS CLI calls nobody.
_OFFLINE = ("help", "--version")


def aws(context: typer.Context) -> None:
    """Run the AWS CLI on this platform: trivet aws lambda list-functions"""
    run(context.args)


def run(arguments: Sequence[str]) -> NoReturn:
    """Become the AWS CLI with `arguments`, as they are."""
    settings = read_settings()
    running = find_running(settings)
    if running is None and not any(word in arguments for word in _OFFLINE):
        raise not_running(settings)
    variables = environment_of(settings, running, os.environ).applied(os.environ)
    program = _program(variables)
    os.execve(program, [program, *_with_endpoint(arguments, variables)], variables)


def _program(variables: Mapping[str, str]) -> str:
    program = shutil.which("aws", path=variables["PATH"])
    if program is None:
        program = os.path.join(sys.prefix, "bin", "aws")
        if not os.access(program, os.X_OK):
            raise Unavailable("there is no AWS CLI", hint=f"{sys.executable} -m pip install awscli")
    return program


def _with_endpoint(arguments: Sequence[str], variables: Mapping[str, str]) -> Sequence[str]:
    """AWS CLI v2 before 2.13 does not know AWS_ENDPOINT_URL; every one knows the option."""
    if any(word.split("=")[0] == "--endpoint-url" for word in arguments):
        return arguments
    return ("--endpoint-url", variables["AWS_ENDPOINT_URL"], *arguments)
