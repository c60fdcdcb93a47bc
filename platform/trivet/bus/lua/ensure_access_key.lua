-- Makes the first access key, once.
-- KEYS: access keys.  ARGV: key id, secret.  Returns the key that is there: {id, secret}.
local ids = redis.call('HKEYS', KEYS[1])
if #ids == 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  return {ARGV[1], ARGV[2]}
end
table.sort(ids)
return {ids[1], redis.call('HGET', KEYS[1], ids[1])}
