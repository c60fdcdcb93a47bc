-- Deletes a function's record; its version expires later, as after a replacement.
-- KEYS: record, version.  ARGV: lifetime of the version in seconds.
-- Returns how many records were deleted.
redis.call('EXPIRE', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
