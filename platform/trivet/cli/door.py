"""Door: the AWS endpoint of the running platform, entered as any user's client would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trivet.cli.environment import environment_of
from trivet.cli.running import Running, not_running
from trivet.cli.screen import command
from trivet.core.arns import FunctionRef, parse_function_ref
from trivet.errors import CallerError, FunctionNotFound, TrivetError
from trivet.settings import Settings


class Refused(TrivetError):
    """The AWS endpoint answered with an error, in its own words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind  # "ResourceNotFoundException"


class Door:
    """Gives botocore clients. What they do belongs within `answers`."""

    def __init__(self, settings: Settings, running: Running) -> None:
        # What a shell would get from `trivet env`, so that nothing else of this process's counts.
        variables = environment_of(settings, running, os.environ).applied(os.environ)
        os.environ.clear()
        os.environ.update(variables)
        from botocore.session import Session

        self._settings = settings
        self._session = Session()

    def client(self, service: str) -> Any:
        from botocore.config import Config

        patience = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})
        return self._session.create_client(service, config=patience)

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turn botocore's errors into ours. Raises Refused and NotRunning."""
        from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

        try:
            yield
        except ClientError as error:
            told = error.response["Error"]
            raise Refused(told.get("Code", "Error"), told.get("Message", "")) from error
        except EndpointConnectionError as error:
            raise not_running(self._settings) from error
        except BotoCoreError as error:
            raise TrivetError(str(error)) from error

    def require_function(self, name: str) -> None:
        """Raises FunctionNotFound."""
        try:
            with self.answers():
                self.client("lambda").get_function_configuration(FunctionName=name)
        except Refused as error:
            if error.kind != FunctionNotFound.error_type:
                raise
            hint = f"{command()} aws lambda list-functions"
            raise FunctionNotFound(f"there is no function '{name}'", hint=hint) from error


def named(function: str) -> FunctionRef:
    """The function that a user's word means. Raises CallerError."""
    ref = parse_function_ref(function)
    if ref is None:
        message = f"'{function}' is not the name or the ARN of a function"
        raise CallerError(message, hint=f"{command()} aws lambda list-functions")
    return ref
