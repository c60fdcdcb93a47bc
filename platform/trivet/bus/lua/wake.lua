#!lua flags=allow-oom
-- Puts parked events whose time has come back onto their stream.
-- KEYS: delayed, parked, stream.  ARGV: now in ms, most events.
-- Returns {how many, when the next one is due, or ''}.
local origins = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, origin in ipairs(origins) do
  local packed = redis.call('HGET', KEYS[2], origin)
  if packed then
    local parts = cmsgpack.unpack(packed)
    redis.call('XADD', KEYS[3], '*', 'e', parts[1], 'p', parts[2])
    redis.call('HDEL', KEYS[2], origin)
  end
  redis.call('ZREM', KEYS[1], origin)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {#origins, next[2] or ''}
