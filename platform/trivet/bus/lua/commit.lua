#!lua flags=allow-oom
-- Ends an attempt at an asynchronous event, all of it or nothing: meters it, and either parks the
-- event until its next attempt is due, or ends it.
-- KEYS: stream, totals, readings, bill of the month, delayed, parked, ledger, outbox.
-- ARGV: group, consumer, entry id, readings, how many they are, megabyte-milliseconds, lifetime of
-- the bill, most entries of readings; then of the event: origin, request id, progress, due in ms
-- ('' when it has ended), state, condition, what its destination is told ('': nothing), the
-- destination's ARN and the event's trace, most bytes of the ledger.
-- Returns 1; 0 when it was committed before: after a lost connection a commit is sent again; -1 when
-- another consumer has taken the event over, to whom it belongs from then on.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not pending then
  return 0
end
if pending[2] ~= ARGV[2] then
  return -1
end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local event = ''
if entry then
  event = entry[2][2] -- always the first field
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
if pending[4] > 1 then
  redis.call('HINCRBY', KEYS[2], 'aborted', pending[4] - 1)
end
if ARGV[5] ~= '0' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'r', ARGV[4])
  if redis.call('HINCRBY', KEYS[4], 'requests', ARGV[5]) == tonumber(ARGV[5]) then
    redis.call('EXPIRE', KEYS[4], ARGV[7]) -- a new one
  end
  redis.call('HINCRBY', KEYS[4], 'mb_ms', ARGV[6])
  redis.call('HINCRBY', KEYS[2], 'requests', ARGV[5])
  redis.call('HINCRBY', KEYS[2], 'mb_ms', ARGV[6])
end
if ARGV[12] ~= '' then
  redis.call('HSET', KEYS[6], ARGV[9], cmsgpack.pack({event, ARGV[11]}))
  redis.call('ZADD', KEYS[5], ARGV[12], ARGV[9])
  return 1
end
local most = tonumber(ARGV[18])
if #event > most / 4 then
  event = ''
end
redis.call('XADD', KEYS[7], '*', 's', ARGV[13], 'o', ARGV[9], 'i', ARGV[10], 'c', ARGV[14],
  'p', ARGV[11], 'e', event, 't', ARGV[16])
redis.call('HINCRBY', KEYS[2], ARGV[13], 1)
if ARGV[15] ~= '' then
  redis.call('XADD', KEYS[8], '*', 't', ARGV[16], 'o', ARGV[9], 'b', ARGV[15], 'x', ARGV[17])
  redis.call('HINCRBY', KEYS[2], 'outbox', 1)
end
local bytes = redis.call('HINCRBY', KEYS[2], 'ledger_bytes', #event + #ARGV[11])
while bytes > most do
  local oldest = redis.call('XRANGE', KEYS[7], '-', '+', 'COUNT', 1)[1]
  if not oldest then
    break
  end
  local fields = oldest[2]
  redis.call('XDEL', KEYS[7], oldest[1])
  local attempts, mb_ms = cmsgpack.unpack(fields[10])[3], 0
  for _, attempt in ipairs(attempts) do
    mb_ms = mb_ms + attempt[5] * attempt[6]
  end
  redis.call('HINCRBY', KEYS[2], 'forgotten', 1)
  redis.call('HINCRBY', KEYS[2], 'forgotten_requests', #attempts)
  redis.call('HINCRBY', KEYS[2], 'forgotten_mb_ms', mb_ms)
  redis.call('HINCRBY', KEYS[2], 'forgotten_aborted', cmsgpack.unpack(fields[10])[5])
  bytes = redis.call('HINCRBY', KEYS[2], 'ledger_bytes', -(#fields[10] + #fields[12]))
end
return 1
