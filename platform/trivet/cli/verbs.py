"""Verbs: what `trivet` can be told to do, and the help of it."""

from __future__ import annotations

from typing import Any

import typer

from trivet.cli import (
    aws,
    bill,
    coverage,
    deploy,
    doctor,
    down,
    env,
    events,
    invoke,
    ledger,
    logs,
    ls,
    replay,
    restart,
    rm,
    runtime,
    trigger,
    up,
    version,
)

app = typer.Typer(
    help="AWS Lambda on your own machine. Begin with: trivet up",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The verb `aws` is run before this parser sees it; here it is only listed.
_PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}

app.command()(up.up)
app.command()(down.down)
app.command()(restart.restart)
app.command()(env.env)
app.command()(deploy.deploy)
app.command()(invoke.invoke)
app.command()(ls.ls)
app.command()(rm.rm)
app.command(add_help_option=False, context_settings=_PASS_ON)(aws.aws)
app.command()(logs.logs)
app.add_typer(trigger.app, name="trigger")
app.add_typer(runtime.app, name="runtime")
app.command()(events.events)
app.command()(replay.replay)
app.add_typer(ledger.app, name="ledger")
app.command()(bill.bill)
app.command()(doctor.doctor)
app.command()(coverage.coverage)
app.command()(version.version)
