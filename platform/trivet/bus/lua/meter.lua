#!lua flags=allow-oom
-- Meters a batch of attempts of the express lane.
-- KEYS: mark of this batch, readings, bill of the month; marks of batches that are not sent again.
-- ARGV: lifetime of the mark, readings, how many they are, megabyte-milliseconds, lifetime of the
-- bill, most entries of readings.
-- Returns 0 when it was metered before: after a lost connection a batch is sent again.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then
  return 0
end
for spent = 4, #KEYS do
  redis.call('UNLINK', KEYS[spent])
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'r', ARGV[2])
redis.call('HINCRBY', KEYS[3], 'requests', ARGV[3])
redis.call('HINCRBY', KEYS[3], 'mb_ms', ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[5])
return 1
