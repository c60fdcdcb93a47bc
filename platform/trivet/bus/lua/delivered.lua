#!lua flags=allow-oom
-- Takes what a destination was told, or can never be told, off the outbox.
-- KEYS: outbox, totals.  ARGV: entry id, 'delivered' or 'undelivered'.
-- Returns 0 when it was taken off before.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
return 1
