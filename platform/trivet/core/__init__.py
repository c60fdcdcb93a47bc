"""Pure values and decisions: standard library only, no clock, no Redis, no process."""
