-- Stops serving a function, unless an event waits that nobody has read.
-- KEYS: stream, rung flag.  ARGV: group.  Returns 1 when work waits: go on serving.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if not groups.err then
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
    end
  end
end
-- An empty stream is not kept: the next publisher and reader make it anew.
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1])
end
redis.call('DEL', KEYS[2])
return 0
