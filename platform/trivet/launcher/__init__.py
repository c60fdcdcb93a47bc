"""The launcher: starts, watches, restarts and ends every other process; standard library only."""
