-- Puts an event onto a bus, once.
-- KEYS: entries of the bus, idempotency key.  ARGV: event, lifetime of the key in seconds, most
-- entries of the bus.  Returns 0 when it was there before.
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[2]) then
  return 0
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'e', ARGV[1])
return 1
