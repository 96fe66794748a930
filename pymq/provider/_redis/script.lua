-- Everything that the Redis provider does, in one script: a batch of operations, executed as a whole.
--
-- KEYS[1] is the prefix of all keys, pymq:{<namespace>}:, whose tag keeps them on one node of a cluster.
-- ARGV: the member's token, the batch's number, then the operations: name, how many arguments, arguments.
-- A numbered batch is executed once: a member that got no reply sends it again, with a ? before the number, and gets the result that
-- was remembered; one that has changed nothing is not remembered. Blank lines are between functions only: `script.py` cuts the script
-- at them, and defines a function that is marked as rare when it is called.
--
--   members      zset    token -> when its registration ends (ms)       m:<token>  hash  last batch and its result
--   mi:<token>   set     its inboxes                                    n, pg      the last id; the generation of the patterns
--   i:<inbox>    list    messages, the first of which has the number    im:<inbox> hash  base; owner, limit, bytes, idle ...
--   ib:<inbox>   set     its bindings ("=topic", "~pattern")            t:<topic>  set   inboxes bound to exactly that topic
--   queues       zset    the shared queues' names                       g:<topic>  set   shared queues bound to exactly that
--   q:<queue>    hash    bytes, expired, checked                        qb:<queue> set   its bindings
--   r:<queue>    zset    ids that are ready, by their place             h:<queue>  zset  hidden ids: leased or delayed, by due time
--   p:<queue>    hash    id -> message                                  e:<queue>  hash  id -> expiry (ms), of those that have one
--   l:<queue>    hash    id -> "attempt owner bytes", of the leased     a:<queue>  hash  id -> attempts so far, of the returned
--   o:<queue>    hash    owner -> how many it has leased                pi, ps     set   patterns of inboxes, of shared queues
--   w:<name>     list    a token that wakes who waits for messages      f:<name>, fw:<name>  the same for who waits for room
local P, ME, NUMBER = KEYS[1], ARGV[1], ARGV[2]
local call, at = redis.call, 3
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONG = 600000          -- what members keep alive is gone ten minutes after the last of them
local SOON = 1000            -- who waits looks again after a second at the latest
local LEVEL = 8796093022208  -- 2^43: an id is its place, the level of its priority times this, plus a counter that starts as a time in ms
local bound, generation      -- what a publish has looked up, for the next ones of the batch
local alive = {}             -- the owners that live
local is_bulky = false       -- whether the result is too large to be remembered
local BATCH_BYTES = 8388608  -- what one reply carries, but for a single larger message
local DIRECT = 16384         -- a message up to this size travels in the token that wakes its receiver

local function argument()
  at = at + 1
  return ARGV[at - 1]
end

local function number()
  return tonumber(argument())
end

local function numeral(value)
  return string.format('%.0f', value)
end

local function list()
  local items = {}
  for n = 1, number() do
    items[n] = argument()
  end
  return items
end

local function next_id()
  local id = call('INCR', P .. 'n')
  if id < 1000000000000 then
    id = now
    call('SET', P .. 'n', numeral(now), 'PX', LONG)
  end
  return id
end

local function lives(token)
  if alive[token] == nil then
    local ends = call('ZSCORE', P .. 'members', token)
    alive[token] = ends and tonumber(ends) > now
  end
  return alive[token]
end

-- ---- those who wait

local function ring(name)
  local tokens = P .. 'w:' .. name
  if call('EXISTS', tokens) == 0 then
    call('RPUSH', tokens, '')
    call('PEXPIRE', tokens, 60000)
  end
end

local function tell_room(name)
  if call('EXISTS', P .. 'fw:' .. name) == 1 and call('LLEN', P .. 'f:' .. name) < 64 then
    call('RPUSH', P .. 'f:' .. name, '')
    call('PEXPIRE', P .. 'f:' .. name, 5000)
  end
end

-- Who is woken by it finds no queue, and wakes the next (`tell`), until nobody waits (`hush`).
local function tell_the_end(name)
  for _, kind in ipairs({'w:', 'f:'}) do
    if call('EXISTS', P .. kind .. name) == 0 then
      call('RPUSH', P .. kind .. name, '')
      call('PEXPIRE', P .. kind .. name, 2 * SOON)
    end
  end
end

-- ---- bindings

local function new_generation()
  local newer = math.max(tonumber(call('GET', P .. 'pg') or '0') + 1, now)
  call('SET', P .. 'pg', numeral(newer), 'PX', LONG)
end

local function pattern_entry(pattern, name)
  return #pattern .. ':' .. pattern .. name
end

local function remove_binding(name, binding, is_inbox)
  local pattern = string.sub(binding, 2)
  if string.sub(binding, 1, 1) == '=' then
    call('SREM', P .. (is_inbox and 't:' or 'g:') .. pattern, name)
  elseif call('SREM', P .. (is_inbox and 'pi' or 'ps'), pattern_entry(pattern, name)) == 1 then
    new_generation()
  end
end

local function unbind_all(name, bindings, is_inbox)
  for _, binding in ipairs(call('SMEMBERS', bindings)) do
    remove_binding(name, binding, is_inbox)
  end
end

local function remove_inbox(name)
  unbind_all(name, P .. 'ib:' .. name, true)
  call('DEL', P .. 'i:' .. name, P .. 'im:' .. name, P .. 'ib:' .. name, P .. 'w:' .. name, P .. 'fw:' .. name, P .. 'f:' .. name)
end

local function remove_shared(name)
  unbind_all(name, P .. 'qb:' .. name, false)
  local keys = {}
  for n, kind in ipairs({'q:', 'qb:', 'r:', 'h:', 'p:', 'e:', 'l:', 'a:', 'o:', 'w:', 'fw:', 'f:'}) do
    keys[n] = P .. kind .. name
  end
  call('DEL', unpack(keys))
  call('ZREM', P .. 'queues', name)
end

local function bury(token)  -- rare
  for _, inbox in ipairs(call('SMEMBERS', P .. 'mi:' .. token)) do
    remove_inbox(inbox)
  end
  call('DEL', P .. 'mi:' .. token, P .. 'm:' .. token)
  call('ZREM', P .. 'members', token)
  alive[token] = nil
end

local function bury_the_dead()
  for _, token in ipairs(call('ZRANGEBYSCORE', P .. 'members', '-inf', now, 'LIMIT', 0, 10)) do
    bury(token)
  end
end

-- ---- inboxes

local function inbox_owner(name)
  local owner = call('HGET', P .. 'im:' .. name, 'owner')
  if owner and not lives(owner) then
    bury(owner)
    owner = nil
  end
  return owner
end

local function offer_inbox(name, message)
  local meta = P .. 'im:' .. name
  local values = call('HMGET', meta, 'owner', 'bytes', 'limit', 'idle', 'behind', 'base')
  local owner, bytes = values[1], tonumber(values[2])
  if not owner then
    return 'gone'
  end
  if owner ~= ME then
    if not lives(owner) then
      bury(owner)
      return 'gone'
    end
    if bytes > 0 and bytes + #message > tonumber(values[3]) then
      return values[5] == '1' and 'behind' or 'full'
    end
  end
  local messages = P .. 'i:' .. name
  local count = call('RPUSH', messages, message)
  if count == 1 then
    call('PEXPIRE', messages, LONG)
  end
  if values[4] ~= '1' then
    call('HINCRBY', meta, 'bytes', #message)
  elseif count == 1 and #message <= DIRECT then
    call('HSET', meta, 'idle', '0', 'handed', 1)
    call('RPUSH', P .. 'w:' .. name, values[6] .. ' ' .. message)
    call('PEXPIRE', P .. 'w:' .. name, LONG)
  else
    call('HSET', meta, 'idle', '0', 'bytes', bytes + #message)
    ring(name)
  end
  return 'ok'
end

-- ---- shared queues

local function spend(queue, owner, count)
  if call('HINCRBY', P .. 'o:' .. queue, owner, -count) <= 0 then
    call('HDEL', P .. 'o:' .. queue, owner)
  end
end

local function show(queue, id)  -- rare
  local lease = call('HGET', P .. 'l:' .. queue, id)
  call('ZREM', P .. 'h:' .. queue, id)
  if lease then
    local attempt, owner = string.match(lease, '^(%d+) (%S+)')
    call('HDEL', P .. 'l:' .. queue, id)
    call('HSET', P .. 'a:' .. queue, id, attempt)
    spend(queue, owner, 1)
  end
  call('ZADD', P .. 'r:' .. queue, id, id)
end

local function give_back(queue, owner)  -- rare
  local leases = call('HGETALL', P .. 'l:' .. queue)
  for n = 1, #leases, 2 do
    if string.match(leases[n + 1], ' (%S+)') == owner then
      show(queue, leases[n])
    end
  end
  call('HDEL', P .. 'o:' .. queue, owner)
  ring(queue)
end

local function show_due(queue)
  local due = call('ZRANGEBYSCORE', P .. 'h:' .. queue, '-inf', now, 'LIMIT', 0, 1000)
  for _, id in ipairs(due) do
    show(queue, id)
  end
  local checked = tonumber(call('HGET', P .. 'q:' .. queue, 'checked') or '0')
  if math.abs(now - checked) >= 500 then
    for _, owner in ipairs(call('HKEYS', P .. 'o:' .. queue)) do
      if not lives(owner) then
        give_back(queue, owner)
      end
    end
    call('HSET', P .. 'q:' .. queue, 'checked', now)
  end
end

local function waiting(queue)
  return call('ZCARD', P .. 'r:' .. queue) + call('ZCARD', P .. 'h:' .. queue) - call('HLEN', P .. 'l:' .. queue)
end

local function hide(queue, id, milliseconds)  -- rare
  call('ZADD', P .. 'h:' .. queue, numeral(now + milliseconds), id)
  if milliseconds < SOON then
    ring(queue)
  end
end

local function offer_shared(queue, message, how, maxsize, priority)  -- rare
  local bytes = call('HGET', P .. 'q:' .. queue, 'bytes')
  if not bytes then
    return 'gone'
  end
  local limit, delay, ttl = string.match(how, '^(%d+) (%d+) (%-?%d+)$')
  bytes, delay, ttl = tonumber(bytes), tonumber(delay), tonumber(ttl)
  if bytes > 0 and bytes + #message > tonumber(limit) then
    return 'full'
  end
  if maxsize > 0 then
    show_due(queue)
    if waiting(queue) >= maxsize then
      return 'full'
    end
  end
  local id = numeral((9 - priority) * LEVEL + next_id())
  call('HSET', P .. 'p:' .. queue, id, message)
  call('HINCRBY', P .. 'q:' .. queue, 'bytes', #message)
  if ttl >= 0 then
    call('HSET', P .. 'e:' .. queue, id, numeral(now + ttl))
  end
  if delay > 0 then
    hide(queue, id, delay)
  else
    call('ZADD', P .. 'r:' .. queue, id, id)
    ring(queue)
  end
  return 'ok'
end

local function forget(queue, ids, bytes)
  call('HDEL', P .. 'p:' .. queue, unpack(ids))
  for _, kind in ipairs(call('EXISTS', P .. 'e:' .. queue, P .. 'a:' .. queue) > 0 and {'e:', 'a:'} or {}) do
    call('HDEL', P .. kind .. queue, unpack(ids))
  end
  call('HINCRBY', P .. 'q:' .. queue, 'bytes', 0 - bytes)
  tell_room(queue)
end

local function is_expired(expiries, n)
  return expiries and expiries[n] and tonumber(expiries[n]) <= now
end

-- Ids, attempts and messages of the first ones that have not expired, and how many bytes these are.
local function pop(queue, limit)
  local ids, attempts, messages, bytes, gone, gone_bytes = {}, {}, {}, 0, {}, 0
  local ready, payloads, expiries, attempted = P .. 'r:' .. queue, P .. 'p:' .. queue, P .. 'e:' .. queue, P .. 'a:' .. queue
  local can_expire, returned = call('EXISTS', expiries) == 1, call('EXISTS', attempted) == 1
  while #ids < limit and bytes < BATCH_BYTES do
    local keys = call('ZRANGE', ready, 0, math.min(limit - #ids, 100) - 1)
    if #keys == 0 then
      break
    end
    if #keys > 1 or bytes > 0 then  -- not more than a reply carries: large messages come one by one
      local fit = math.floor(BATCH_BYTES / (call('HSTRLEN', payloads, keys[1]) + 1))
      for n = #keys, math.max(1, fit) + 1, -1 do
        keys[n] = nil
      end
    end
    call('ZREMRANGEBYRANK', ready, 0, #keys - 1)
    local found = call('HMGET', payloads, unpack(keys))
    local ends = can_expire and call('HMGET', expiries, unpack(keys))
    local counts = returned and call('HMGET', attempted, unpack(keys))
    for n, id in ipairs(keys) do
      local message = found[n]
      if ends and ends[n] and tonumber(ends[n]) <= now then
        gone[#gone + 1] = id
        gone_bytes = gone_bytes + #message
      else
        local place = #ids + 1
        ids[place], messages[place] = id, message
        attempts[place] = counts and counts[n] and tonumber(counts[n]) + 1 or 1
        bytes = bytes + #message
      end
    end
  end
  if #gone > 0 then
    call('HINCRBY', P .. 'q:' .. queue, 'expired', #gone)
    forget(queue, gone, gone_bytes)
  end
  return ids, attempts, messages, bytes
end

-- The last one comes first: a short set of hidden ids is searched from its start for the place of each.
local function lease(queue, ids, attempts, messages, milliseconds)
  local leases, times, ends, owner = {}, {}, numeral(now + milliseconds), ' ' .. ME .. ' '
  for n, id in ipairs(ids) do
    leases[2 * n - 1] = id
    leases[2 * n] = attempts[n] .. owner .. #messages[n]
    times[2 * n - 1] = ends
    times[2 * n] = ids[#ids + 1 - n]
  end
  call('HSET', P .. 'l:' .. queue, unpack(leases))
  call('ZADD', P .. 'h:' .. queue, unpack(times))
  call('HINCRBY', P .. 'o:' .. queue, ME, #ids)
  tell_room(queue)
  if milliseconds < SOON then
    ring(queue)
  end
end

-- The message's size, where this delivery is still the valid one: the lease's record is gone, or another's, once it has ended.
local function size_of_leased(lease, attempt)
  local found, owner, size = string.match(lease or '', '^(%d+) (%S+) (%d+)$')
  return found == attempt and owner == ME and tonumber(size)
end

local function is_leased(queue, id, attempt)
  return size_of_leased(call('HGET', P .. 'l:' .. queue, id), attempt)
end

local function unlease(queue, id)
  call('HDEL', P .. 'l:' .. queue, id)
  call('ZREM', P .. 'h:' .. queue, id)
  spend(queue, ME, 1)
end

-- ---- the operations

local operations = {}

function operations.register()
  local epoch = argument()
  call('ZADD', P .. 'members', now + number(), ME)
  call('HSET', P .. 'm:' .. ME, 'last', '0')
  call('SET', P .. 'epoch', epoch, 'NX')
  return {call('GET', P .. 'epoch')}
end

function operations.beat()
  local ends, thoroughly = now + number(), argument()
  call('ZADD', P .. 'members', ends, ME)
  for _, key in ipairs({'members', 'n', 'pg', 'pi', 'epoch', 'm:' .. ME, 'mi:' .. ME}) do
    call('PEXPIRE', P .. key, LONG)
  end
  for _, inbox in ipairs(thoroughly == '1' and call('SMEMBERS', P .. 'mi:' .. ME) or {}) do
    for _, kind in ipairs({'i:', 'im:', 'ib:', 'w:'}) do
      call('PEXPIRE', P .. kind .. inbox, LONG)
    end
    for _, binding in ipairs(call('SMEMBERS', P .. 'ib:' .. inbox)) do
      call('PEXPIRE', P .. 't:' .. string.sub(binding, 2), LONG)
    end
  end
  bury_the_dead()
  return {time[1], time[2]}
end

function operations.declare()
  local name, limit = argument(), argument()
  local owner = inbox_owner(name)
  local is_shared = call('EXISTS', P .. 'q:' .. name) == 1
  if limit == '' then
    if owner then
      return {'taken'}
    end
    call('HSETNX', P .. 'q:' .. name, 'bytes', 0)
    call('ZADD', P .. 'queues', 0, name)
    return {'ok'}
  end
  if is_shared or (owner and owner ~= ME) then
    return {'taken'}
  end
  if not owner then
    local meta = P .. 'im:' .. name
    call('HSET', meta, 'owner', ME, 'limit', limit, 'bytes', 0, 'handed', 0, 'base', time[1] .. string.format('%06d', time[2]), 'idle', '0', 'behind', '0', 'dropped', 0)
    call('PEXPIRE', meta, LONG)
    call('SADD', P .. 'mi:' .. ME, name)
    call('PEXPIRE', P .. 'mi:' .. ME, LONG)
  end
  return {'ok'}
end

function operations.delete()
  local name = argument()
  local owner = call('HGET', P .. 'im:' .. name, 'owner')
  if owner then
    remove_inbox(name)
    call('SREM', P .. 'mi:' .. owner, name)
    tell_the_end(name)
  elseif call('EXISTS', P .. 'q:' .. name) == 1 then
    remove_shared(name)
    tell_the_end(name)
  end
  return {'ok'}
end

function operations.tell()
  tell_the_end(argument())
  return {'ok'}
end

function operations.hush()
  local name = argument()
  if call('EXISTS', P .. 'q:' .. name, P .. 'im:' .. name) == 0 then
    call('DEL', P .. 'w:' .. name, P .. 'f:' .. name)
  end
  return {'ok'}
end

-- A token that was taken by one who waits no more is the next one's.
function operations.again()
  local kind, name = argument(), argument()
  local tokens = P .. kind .. name
  if call('EXISTS', P .. 'q:' .. name, P .. 'im:' .. name) == 1 and call('EXISTS', tokens) == 0 then
    call('RPUSH', tokens, '')
    call('PEXPIRE', tokens, 5 * SOON)
  end
  return {'ok'}
end

function operations.bind()
  local name, exact, pattern = argument(), argument() == '1', argument()
  local is_inbox = inbox_owner(name)
  if not is_inbox and call('EXISTS', P .. 'q:' .. name) == 0 then
    return {'gone'}
  end
  call('SADD', P .. (is_inbox and 'ib:' or 'qb:') .. name, (exact and '=' or '~') .. pattern)
  if exact then
    call('SADD', P .. (is_inbox and 't:' or 'g:') .. pattern, name)
  elseif call('SADD', P .. (is_inbox and 'pi' or 'ps'), pattern_entry(pattern, name)) == 1 then
    new_generation()
  end
  if is_inbox then
    call('PEXPIRE', P .. 'ib:' .. name, LONG)
    call('PEXPIRE', P .. (exact and 't:' .. pattern or 'pi'), LONG)
  end
  return {'ok'}
end

function operations.unbind()
  local name, exact, pattern = argument(), argument() == '1', argument()
  local binding = (exact and '=' or '~') .. pattern
  for kind, is_inbox in pairs({['ib:'] = true, ['qb:'] = false}) do
    if call('SREM', P .. kind .. name, binding) == 1 then
      remove_binding(name, binding, is_inbox)
    end
  end
  return {'ok'}
end

function operations.patterns()
  return {call('GET', P .. 'pg') or '0', call('SMEMBERS', P .. 'pi'), call('SMEMBERS', P .. 'ps')}, true
end

-- `how`: the bytes that a shared queue holds at most, the delay, the ttl.
local function offer(name, message, wait, how, maxsize, priority)
  local outcome = offer_inbox(name, message)
  if outcome == 'gone' then
    outcome = offer_shared(name, message, how, maxsize, priority)
  end
  if outcome == 'full' and wait == '1' then
    call('SET', P .. 'fw:' .. name, '', 'PX', 2 * SOON)
  end
  return outcome
end

function operations.send()
  local name, wait, how, maxsize, priority = argument(), argument(), argument(), number(), number()
  local outcome = offer(name, argument(), wait, how, maxsize, priority)
  return outcome == 'behind' and 'full' or outcome
end

local function bound_to(topic)
  if not bound[topic] then
    bound[topic] = call('SUNION', P .. 't:' .. topic, P .. 'g:' .. topic)
  end
  return bound[topic]
end

-- Those that are bound to one of the topics, and those named.
local function targets_of(topics, names)
  if topics == 1 and names == 0 then
    return bound_to(argument())
  end
  local targets, seen = {}, {}
  for n = 1, topics + names do
    for _, name in ipairs(n <= topics and bound_to(argument()) or {argument()}) do
      if not seen[name] then
        seen[name] = true
        targets[#targets + 1] = name
      end
    end
  end
  return targets
end

-- The first attempt finds the receivers; the later ones go to those that were full. A receiver that was waited for in vain
-- (`behind`) is not waited for again before it has caught up.
function operations.publish()
  local known, how = argument(), argument()
  if not bound then
    bound, generation = {}, call('GET', P .. 'pg') or '0'
  end
  if known ~= '' and known ~= generation then
    return 'stale', true
  end
  local targets, message = targets_of(number(), number()), argument()
  local accepted, full, behind = 0, {}, {}
  for _, name in ipairs(targets) do
    local outcome = offer(name, message, '1', how, 0, 0)
    if outcome == 'ok' then
      accepted = accepted + 1
    elseif outcome == 'full' then
      full[#full + 1] = name
    elseif outcome == 'behind' then
      behind[#behind + 1] = name
      call('HINCRBY', P .. 'im:' .. name, 'dropped', 1)
    end
  end
  if #full + #behind == 0 then
    return accepted, #targets == 0
  end
  return {accepted, full, behind}
end

-- Their copies are lost, or, for shared queues, refused: which of the names are inboxes.
function operations.drop()
  local inboxes = {}
  for _, name in ipairs(list()) do
    if call('EXISTS', P .. 'im:' .. name) == 1 then
      call('HSET', P .. 'im:' .. name, 'behind', '1')
      call('HINCRBY', P .. 'im:' .. name, 'dropped', 1)
      inboxes[#inboxes + 1] = name
    end
  end
  return inboxes
end

local function lost_one(names)
  for _, name in ipairs(names) do
    if not inbox_owner(name) then
      return true
    end
  end
  return false
end

-- An inbox of ours, without what has arrived: its first number, bytes, how many were handed out, how many there are. Nothing where it
-- is not ours.
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
  end
  if values[5] == '1' then
    call('HSET', meta, 'behind', '0')
  end
  return base, bytes, handed, call('LLEN', messages)
end

local function set_empty(name, base, idle, busy)
  call('DEL', P .. 'w:' .. name)
  call('HSET', P .. 'im:' .. name, 'base', numeral(base), 'bytes', 0, 'handed', 0, 'idle', idle, 'busy', busy)
end

-- What has come to an inbox. It stays there until the next fetch says that it has arrived (`done`), so a reply that is lost loses
-- no message; but what was handed out does not count as waiting. `then_blocks`: "0"; "1", who asks will wait for a token if this is
-- empty; "2", he waits already, and needs one if it is not.
function operations.fetch()
  local name, done, then_blocks, busy, watch = argument(), number(), argument(), argument(), list()
  local base, bytes, handed, count = trimmed(name, done)
  if not base then
    return {'gone'}
  end
  if count == 0 and not lost_one(watch) then
    set_empty(name, base, then_blocks == '0' and '0' or '1', busy)
    return {'empty', SOON}
  end
  if count == 0 then
    set_empty(name, base, '0', busy)
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
  local state = {'base', numeral(base), 'bytes', bytes, 'handed', math.max(handed, #found), 'idle', '0', 'busy', busy}
  call('HSET', P .. 'im:' .. name, unpack(state))
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
  is_bulky = is_bulky or bytes > 65536
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
  if delay > 0 then
    hide(queue, id, delay)
  else
    call('ZADD', P .. 'r:' .. queue, id, id)
    ring(queue)
  end
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

function operations.size()
  local name = argument()
  if call('EXISTS', P .. 'q:' .. name) == 1 then
    show_due(name)
    return waiting(name), true
  end
  return call('LLEN', P .. 'i:' .. name) - tonumber(call('HGET', P .. 'im:' .. name, 'handed') or '0'), true
end

function operations.queues()
  local prefix = argument()
  return call('ZRANGEBYLEX', P .. 'queues', '[' .. prefix, '[' .. prefix .. '\255'), true
end

function operations.counters()
  local found = {}
  for _, queue in ipairs(call('ZRANGE', P .. 'queues', 0, -1)) do
    show_due(queue)
    local expired = call('HGET', P .. 'q:' .. queue, 'expired') or 0
    found[#found + 1] = {queue, waiting(queue), call('HLEN', P .. 'l:' .. queue), 0, tonumber(expired)}
  end
  for _, inbox in ipairs(call('SMEMBERS', P .. 'mi:' .. ME)) do
    local dropped = tonumber(call('HGET', P .. 'im:' .. inbox, 'dropped') or '0')
    local handed = tonumber(call('HGET', P .. 'im:' .. inbox, 'handed') or '0')
    found[#found + 1] = {inbox, call('LLEN', P .. 'i:' .. inbox) - handed, 0, dropped, 0}
  end
  return found
end

-- The live inboxes that are bound to a topic: {name, how many messages wait, how busy its receiver is}.
local function receivers(topic)
  local found = {}
  for _, inbox in ipairs(call('SMEMBERS', P .. 't:' .. topic)) do
    if inbox_owner(inbox) then
      local values = call('HMGET', P .. 'im:' .. inbox, 'handed', 'idle', 'busy')
      local rank = values[3] == '1' and 2 or values[2] == '1' and 0 or 1
      found[#found + 1] = {inbox, call('LLEN', P .. 'i:' .. inbox) - tonumber(values[1] or '0'), rank}
    end
  end
  return found
end

function operations.consumers()
  return receivers(argument()), true
end

-- The best first; equals by name, from another one each time.
local function by_preference(found, turn)
  table.sort(found, function(one, other) return one[1] < other[1] end)
  for place, each in ipairs(found) do
    each[4] = (place - turn) % #found
  end
  table.sort(found, function(one, other)
    for _, n in ipairs({2, 3, 4}) do
      if one[n] ~= other[n] then
        return one[n] < other[n]
      end
    end
    return false
  end)
  return found
end

local function is_ready(inbox, done)
  local base, _, _, count = trimmed(inbox, done)
  if count ~= 0 then
    return false
  end
  set_empty(inbox, base, '1', '0')
  return true
end

-- To the best of the receivers that have room: who got it; and whether the inbox in which the reply is awaited was made ready for one
-- who waits for a token, as by `fetch`.
function operations.request()
  local topic, turn, reply_to, done, message = argument(), number(), argument(), number(), argument()
  local names = call('SMEMBERS', P .. 't:' .. topic)
  local outcome, any_full = nil, false
  for _, each in ipairs(#names > 1 and by_preference(receivers(topic), turn) or {names}) do
    outcome = each[1] and offer_inbox(each[1], message)
    if outcome == 'ok' then
      return {'ok', each[1], reply_to ~= '' and is_ready(reply_to, done) and 1 or 0}
    end
    any_full = any_full or outcome == 'full' or outcome == 'behind'
  end
  return {any_full and 'full' or 'gone'}, true
end

-- The last to leave takes along what nobody will miss: shared queues that are empty and not bound.
local function tidy()
  for _, queue in ipairs(call('ZRANGE', P .. 'queues', 0, -1)) do
    show_due(queue)
    if call('EXISTS', P .. 'qb:' .. queue, P .. 'r:' .. queue, P .. 'h:' .. queue) == 0 then
      remove_shared(queue)
    end
  end
  if call('EXISTS', P .. 'queues') == 0 then
    call('DEL', P .. 'n', P .. 'pg', P .. 'epoch')
  end
end

function operations.leave()
  for _, queue in ipairs(call('ZRANGE', P .. 'queues', 0, -1)) do
    if call('HEXISTS', P .. 'o:' .. queue, ME) == 1 then
      give_back(queue, ME)
    end
  end
  bury(ME)
  bury_the_dead()
  if call('EXISTS', P .. 'members') == 0 then
    tidy()
  end
  return {'ok'}
end

-- ---- the batch

local memory = P .. 'm:' .. ME
if ARGV[at] ~= 'register' then
  if not call('ZSCORE', P .. 'members', ME) then
    return 'unregistered'
  end
  if string.sub(NUMBER, 1, 1) == '?' then  -- sent before, without a reply
    NUMBER = string.sub(NUMBER, 2)
    local remembered = call('HMGET', memory, 'last', 'result')
    if remembered[1] == NUMBER then
      return remembered[2] == '' and 'unregistered' or cmsgpack.unpack(remembered[2])
    end
  end
end

local results, has_changed = {}, false
while at <= #ARGV do
  local name, length = ARGV[at], ARGV[at + 1]
  at = at + 2
  local after = at + length
  if name ~= 'publish' then
    bound = nil
  end
  local ok, result, changes_nothing = pcall(operations[name])
  if not ok then
    result = {'error', type(result) == 'table' and result.err or tostring(result)}
  end
  results[#results + 1] = result
  has_changed = has_changed or not (ok and changes_nothing)
  at = after
end
if has_changed and NUMBER ~= '' then
  redis.pcall('HSET', memory, 'last', NUMBER, 'result', is_bulky and '' or cmsgpack.pack(results))
end
return results
