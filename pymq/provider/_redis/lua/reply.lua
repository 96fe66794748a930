-- A reply to a call, for who waits for it or will: KEYS[1] is the prefix of all keys, ARGV the inbox and the message.
-- One reply at most is on its way to one who waits, and may be lost with his connection: of the last ones there are copies.
local replies, copies = KEYS[1] .. 'd:' .. ARGV[1], KEYS[1] .. 'k:' .. ARGV[1]
local call, LONG, FEW = redis.call, 600000, 20
if call('EXISTS', KEYS[1] .. 'im:' .. ARGV[1]) == 0 then
  return 0
end
call('DEL', KEYS[1] .. '-')  -- as `go_without_memory` does: a call that was executed is not left without an answer
call('RPUSH', replies, ARGV[2])
call('PEXPIRE', replies, LONG)
local count = call('RPUSH', copies, ARGV[2])
if count > 2 * FEW then
  call('LTRIM', copies, -FEW, -1)
end
if count == 1 or count > 2 * FEW then
  call('PEXPIRE', copies, LONG)
end
return 1
