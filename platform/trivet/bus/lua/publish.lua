-- Adds an event to a function's stream, and says whether the bell must be rung for it.
-- KEYS: stream, rung flag.  ARGV: event.  Returns {entry id, 1 when nobody was told yet}.
local id = redis.call('XADD', KEYS[1], '*', 'e', ARGV[1])
if redis.call('SET', KEYS[2], '1', 'NX') then
  return {id, 1}
end
return {id, 0}
