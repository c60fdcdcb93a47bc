-- Replaces a function's record if nobody did so before. The version it pointed at expires later,
-- because an environment may still be starting from it.
-- KEYS: record, new version, old version.
-- ARGV: record, version, its revision, expected revision, lifetime of the old version in seconds.
-- Returns 1, also for a call that is repeated because its answer was lost; 0 when the revision is
-- another; -1 when there is no such function.
local record = redis.call('GET', KEYS[1])
if not record then
  return -1
end
local revision = cmsgpack.unpack(record)['revision_id']
if revision == ARGV[3] then
  return 1
end
if revision ~= ARGV[4] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1])
if KEYS[3] ~= KEYS[2] then
  redis.call('EXPIRE', KEYS[3], ARGV[5])
end
return 1
