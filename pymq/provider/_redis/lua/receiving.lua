-- ---- operations: receiving

local function lost_one(names)
  for _, name in ipairs(names) do
    if not inbox_owner(name) then
      return true
    end
  end
  return false
end

-- An inbox of ours, without what has arrived: its first number, bytes, how many were handed out, how many there are. Nothing where it
-- is not ours. The number is kept with the list: one trimmed twice by the same number would lose what had not arrived.
local function trimmed(name, done)
  local meta, messages = P .. 'im:' .. name, P .. 'i:' .. name
  local values = call('HMGET', meta, 'owner', 'base', 'bytes', 'handed', 'behind')
  if values[1] ~= ME then
    return nil
  end
  local base, bytes, handed = tonumber(values[2]), tonumber(values[3]), tonumber(values[4])
  if done > base then
    call('LTRIM', messages, done - base, -1)
    base, handed = done, math.max(0, handed - (done - base))
    call('HSET', meta, 'base', numeral(base), 'handed', handed)
  end
  if values[5] == '1' then
    call('HSET', meta, 'behind', '0')
  end
  return base, bytes, handed, call('LLEN', messages)
end

local function set_empty(name, idle, busy)
  call('DEL', P .. 'w:' .. name)
  call('HSET', P .. 'im:' .. name, 'bytes', 0, 'handed', 0, 'idle', idle, 'busy', busy)
end

-- The replies that nobody has taken, or the copies of them, join the messages: how many these are then, and their bytes.
local function join(name, kind, count, bytes)  -- rare
  local messages = P .. 'i:' .. name
  for _, reply in ipairs(call('LRANGE', P .. kind .. name, 0, -1)) do
    count, bytes = call('RPUSH', messages, reply), bytes + #reply
  end
  call('PEXPIRE', messages, LONG)
  call('DEL', P .. kind .. name)
  return count, bytes
end

-- What has come to an inbox. It stays there until the next fetch says that it has arrived (`done`), so a reply that is lost loses
-- no message; but what was handed out does not count as waiting. `then_blocks`: "0"; "1", who asks will wait for a token if this is
-- empty; "2", he waits already, and needs one if it is not. `lost`: a reply that he took may not have reached him.
function operations.fetch()
  local name, done, then_blocks, busy, lost, watch = argument(), number(), argument(), argument(), argument(), list()
  go_without_memory()
  local base, bytes, handed, count = trimmed(name, done)
  if not base then
    return {'gone'}
  end
  if lost == '1' then
    count, bytes = join(name, 'k:', count, bytes)
  end
  local is_alone = count == 0 and lost_one(watch)
  if is_alone or then_blocks == '0' then
    count, bytes = join(name, 'd:', count, bytes)
  end
  if count == 0 and not is_alone then
    set_empty(name, then_blocks == '0' and '0' or '1', busy)
    return {'empty', SOON}
  end
  if count == 0 then
    set_empty(name, '0', busy)
  end
  if then_blocks == '2' then
    ring(name)
  end
  if count == 0 then
    return {'lost'}
  end
  local average = bytes / math.max(1, count - handed) + 1
  local found = call('LRANGE', P .. 'i:' .. name, 0, math.max(0, math.min(1000, math.floor(BATCH_BYTES / average)) - 1))
  for n = handed + 1, #found do
    bytes = bytes - #found[n]
  end
  call('HSET', P .. 'im:' .. name, 'bytes', bytes, 'handed', math.max(handed, #found), 'idle', '0', 'busy', busy)
  tell_room(name)
  return {'ok', numeral(base), found}
end

function operations.take()
  local queue, limit, milliseconds, watch = argument(), number(), number(), list()
  if call('EXISTS', P .. 'q:' .. queue) == 0 then
    return {'gone'}, true
  end
  show_due(queue)
  local ids, attempts, messages, bytes = pop(queue, limit)
  is_bulky = bytes > 65536
  if #ids > 0 then
    if milliseconds >= 0 then
      lease(queue, ids, attempts, messages, milliseconds)
    else
      forget(queue, ids, bytes)
    end
    if call('EXISTS', P .. 'r:' .. queue) == 1 then
      ring(queue)
    end
    return {'ok', ids, attempts, messages}
  end
  if lost_one(watch) then
    return {'lost'}, true
  end
  local due = call('ZRANGE', P .. 'h:' .. queue, 0, 0, 'WITHSCORES')[2]
  return {'empty', due and math.max(0, math.min(SOON, tonumber(due) - now)) or SOON}, true
end

function operations.ack()
  local queue, asked, attempts, outcomes, ids, bytes = argument(), list(), list(), {}, {}, 0
  for n, lease in ipairs(call('HMGET', P .. 'l:' .. queue, unpack(asked))) do
    local size = size_of_leased(lease, attempts[n])
    outcomes[n] = size and 1 or 0
    if size then
      ids[#ids + 1] = asked[n]
      bytes = bytes + size
    end
  end
  if #ids > 0 then
    call('HDEL', P .. 'l:' .. queue, unpack(ids))
    call('ZREM', P .. 'h:' .. queue, unpack(ids))
    spend(queue, ME, #ids)
    forget(queue, ids, bytes)
  end
  return outcomes
end

-- With `unused` the delivery counts for nothing: it was taken in advance and nobody has seen it.
function operations.nack()
  local queue, id, attempt, delay, unused = argument(), argument(), argument(), number(), argument() == '1'
  if not is_leased(queue, id, attempt) then
    return {0}
  end
  unlease(queue, id)
  local attempts = unused and tonumber(attempt) - 1 or attempt
  if unused and attempts == 0 then
    call('HDEL', P .. 'a:' .. queue, id)
  else
    call('HSET', P .. 'a:' .. queue, id, attempts)
  end
  place(queue, id, delay)
  return {1}
end

function operations.extend()
  local queue, id, attempt, milliseconds = argument(), argument(), argument(), number()
  if not is_leased(queue, id, attempt) then
    return {0}
  end
  hide(queue, id, milliseconds)
  return {1}
end
