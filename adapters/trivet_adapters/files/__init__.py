"""The file adapter: each file that is completed in a watched folder becomes an S3 event."""

from trivet_adapters.files.watch import run

__all__ = ["run"]
