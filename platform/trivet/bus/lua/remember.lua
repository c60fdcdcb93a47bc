-- Keeps what an adapter remembers about a trigger, if that is still the trigger it was.
-- KEYS: the trigger's memory. ARGV: id of the trigger, number of pairs, the pairs, names to forget.
-- 1: kept; 0: the trigger went, or is another one by now.
if redis.call('HGET', KEYS[1], '') ~= ARGV[1] then
  return 0
end
local pairs_end = 2 + 2 * tonumber(ARGV[2])
for i = 3, pairs_end, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
for i = pairs_end + 1, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
return 1
