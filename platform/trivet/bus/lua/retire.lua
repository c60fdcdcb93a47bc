-- Removes a consumer that has nothing any more. With it would go what is pending for it, which a
-- read that its dead process left blocked may have brought a moment ago.
-- KEYS: stream.  ARGV: group, consumer.  Returns 0 when something is pending for it.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
