-- Whether a durable stream holds an event that nobody has read.
-- KEYS: stream.  ARGV: group, 1 to remove an empty stream: whoever reads it stops serving it.
-- Returns 1 when work waits.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  return 0
end
for _, group in ipairs(groups) do
  local fields = {}
  for i = 1, #group, 2 do
    fields[group[i]] = group[i + 1]
  end
  if fields['name'] == ARGV[1] then
    local after = '(' .. fields['last-delivered-id']
    if #redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1) > 0 then
      return 1
    end
    if ARGV[2] == '1' and redis.call('XLEN', KEYS[1]) == 0 then
      redis.call('DEL', KEYS[1])
    end
    return 0
  end
end
-- No supervisor ever read it: all that is there waits.
return redis.call('XLEN', KEYS[1]) > 0 and 1 or 0
