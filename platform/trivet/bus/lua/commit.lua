-- Ends attempts: takes the event off the durable stream and meters it, or neither.
-- KEYS: stream, readings, bill of the month, mark of this batch.
-- ARGV: group, entry id ('' for a batch of the express lane), readings, how many they are,
-- megabyte-milliseconds, lifetime of the mark, of the bill, most entries of readings.
-- Returns 0 when it was committed before: after a lost connection a commit is sent again.
if ARGV[2] ~= '' then
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
    return 0
  end
  redis.call('XDEL', KEYS[1], ARGV[2])
elseif not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[6]) then
  return 0
end
if ARGV[4] ~= '0' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'r', ARGV[3])
  redis.call('HINCRBY', KEYS[3], 'requests', ARGV[4])
  redis.call('HINCRBY', KEYS[3], 'mb_ms', ARGV[5])
  redis.call('EXPIRE', KEYS[3], ARGV[7])
end
return 1
