"""The cron adapter: each slot of a Schedule becomes an Event, once."""

from trivet_adapters.cron.timetable import run

__all__ = ["run"]
