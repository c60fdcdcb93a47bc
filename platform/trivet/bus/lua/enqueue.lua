-- Accepts an event for asynchronous invocation.
-- KEYS: stream, totals, idempotency key.  ARGV: event, lifetime of the key in seconds (0: there is
-- none), most entries the stream may hold.  Returns 1: accepted, 0: seen before, -1: it is full.
if ARGV[2] ~= '0' and redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return -1
end
redis.call('XADD', KEYS[1], '*', 'e', ARGV[1])
redis.call('HINCRBY', KEYS[2], 'accepted', 1)
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[3], '1', 'EX', ARGV[2])
end
return 1
