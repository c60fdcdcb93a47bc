-- Creates a function: its version first, so that a record never points at nothing.
-- KEYS: record, version.  ARGV: record, version, its revision.
-- Returns 0 when the function exists already, unless this very call made it and is repeated,
-- because its answer was lost.
local record = redis.call('GET', KEYS[1])
if record then
  return cmsgpack.unpack(record)['revision_id'] == ARGV[3] and 1 or 0
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1])
return 1
