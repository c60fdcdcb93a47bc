-- Deletes a function's record and its URLs; its version expires later, as after a replacement.
-- KEYS: record, version, URLs.  ARGV: lifetime of the version in seconds.
-- Returns how many records were deleted.
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return redis.call('DEL', KEYS[1])
