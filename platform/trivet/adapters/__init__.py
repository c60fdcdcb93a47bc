"""The host of the adapters that are processes of their own: they watch, and publish Events."""
