"""The bus: Redis Streams in two lanes, and the only shared state."""
