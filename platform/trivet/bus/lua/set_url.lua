-- Keeps a function URL, if its function is there.
-- KEYS: record of the function, its URLs.  ARGV: qualifier, URL.
-- Returns 1, or 0 when there is no such function.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
