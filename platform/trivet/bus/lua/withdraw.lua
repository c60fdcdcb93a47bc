-- Takes an event back that no supervisor has read yet. Reading an entry puts it on the group's
-- pending list, so of a reader and this script exactly one gets it.
-- KEYS: stream.  ARGV: group, entry id.  Returns 1 when it was withdrawn.
if redis.call('XLEN', KEYS[1]) == 0 then
  return 0
end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if not pending.err and #pending > 0 then
  return 0
end
return redis.call('XDEL', KEYS[1], ARGV[2])
