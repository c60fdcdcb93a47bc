"""Door: the AWS endpoint of the running platform, entered as any user's client would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trivet.cli.environment import environment_of
from trivet.cli.running import Running, not_running
from trivet.cli.screen import command
from trivet.core.arns import FunctionRef, parse_function_ref
from trivet.errors import CallerError, FunctionNotFound, TrivetError
from trivet.settings import Settings

# Statuses that say that something here is out of order, and not the call.
_OUR_FAULTS = (500, 503)


class Refused(TrivetError):
    """The AWS endpoint answered with an error, in its own words."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind, hint=hint)
        self.kind = kind  # "ResourceNotFoundException"


class Door:
    """Gives botocore clients. What they do belongs within `answers`."""

    def __init__(self, settings: Settings, running: Running) -> None:
        # What a shell would get from `trivet env`, so that nothing else of this process's counts.
        variables = environment_of(settings, running, os.environ).applied(os.environ)
        os.environ.clear()
        os.environ.update(variables)
        from botocore.session import Session

        from trivet.aws.model import OWN_MODELS

        self._settings = settings
        self._session = Session()
        self._session.get_component("data_loader").search_paths.append(OWN_MODELS)

    def client(self, service: str, *, patience_s: int = 30, attempts: int = 2) -> Any:
        from botocore.config import Config

        retries = {"total_max_attempts": attempts}
        config = Config(connect_timeout=5, read_timeout=patience_s, retries=retries)
        return self._session.create_client(service, config=config)

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turn botocore's errors into ours. Raises Refused and NotRunning."""
        with answers(self._settings):
            yield

    def function(self, name: str) -> Mapping[str, Any] | None:
        """The configuration of a function, if there is one of that name."""
        try:
            with self.answers():
                api = self.client("lambda")
                found: Mapping[str, Any] = api.get_function_configuration(FunctionName=name)
        except Refused as error:
            if error.kind != FunctionNotFound.error_type:
                raise
            return None
        return found

    def require_function(self, name: str) -> Mapping[str, Any]:
        """The configuration of a function. Raises FunctionNotFound."""
        found = self.function(name)
        if found is None:
            raise FunctionNotFound(f"there is no function '{name}'", hint=f"{command()} ls")
        return found


@contextmanager
def answers(settings: Settings) -> Iterator[None]:
    """Turn botocore's errors into ours. Raises Refused and NotRunning."""
    from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

    try:
        yield
    except ClientError as error:
        told = error.response["Error"]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        hint = f"{command()} doctor" if status in _OUR_FAULTS else ""
        raise Refused(told.get("Code", "Error"), told.get("Message", ""), hint) from error
    except EndpointConnectionError as error:
        raise not_running(settings) from error
    except BotoCoreError as error:
        raise TrivetError(str(error)) from error


def named(function: str) -> FunctionRef:
    """The function that a user's word means. Raises CallerError."""
    ref = parse_function_ref(function)
    if ref is None:
        message = f"'{function}' is not the name or the ARN of a function"
        raise CallerError(message, hint=f"{command()} ls")
    return ref
