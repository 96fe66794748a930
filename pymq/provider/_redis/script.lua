-- Everything that the Redis provider does, in one script: a batch of operations, executed as a whole.
--
-- KEYS[1] is the prefix of all keys, pymq:{<namespace>}:, whose tag keeps them on one node of a cluster.
-- ARGV: the member's token, the batch's number, then the operations: name, how many arguments, arguments.
-- A numbered batch is executed once: a member that got no reply sends it again, with a ? before the number, and gets the result that
-- was remembered. Blank lines are between functions only: `script.py` cuts the script at them.
--
--   members      zset    token -> when its registration ends (ms)       m:<token>  hash  last batch and its result
--   mi:<token>   set     its inboxes                                    n, pg      the last id; the generation of the patterns
--   i:<inbox>    list    messages, the first of which has the number    im:<inbox> hash  base; owner, limit, bytes, idle ...
--   ib:<inbox>   set     its bindings ("=topic", "~pattern")            t:<topic>  set   inboxes bound to exactly that topic
--   queues       zset    the shared queues' names                       g:<topic>  set   shared queues bound to exactly that
--   q:<queue>    hash    bytes, expired, checked                        qb:<queue> set   its bindings
--   r:<queue>    zset    ids that are ready, by their place             h:<queue>  zset  hidden ids: leased or delayed, by due time
--   p:<queue>    hash    id -> message                                  e:<queue>  hash  id -> expiry (ms), of those that have one
--   l:<queue>    hash    id -> "attempt owner", of the leased           a:<queue>  hash  id -> attempts so far, of the returned
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
  local ends = token and call('ZSCORE', P .. 'members', token)
  return ends and tonumber(ends) > now
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

local function bury(token)
  for _, inbox in ipairs(call('SMEMBERS', P .. 'mi:' .. token)) do
    remove_inbox(inbox)
  end
  call('DEL', P .. 'mi:' .. token, P .. 'm:' .. token)
  call('ZREM', P .. 'members', token)
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

local function lease_of(queue, id)
  local lease = call('HGET', P .. 'l:' .. queue, id)
  if lease then
    return string.match(lease, '^(%d+) (.*)$')
  end
end

local function show(queue, id)
  local attempt, owner = lease_of(queue, id)
  call('ZREM', P .. 'h:' .. queue, id)
  if attempt then
    call('HDEL', P .. 'l:' .. queue, id)
    call('HSET', P .. 'a:' .. queue, id, attempt)
    spend(queue, owner, 1)
  end
  call('ZADD', P .. 'r:' .. queue, id, id)
end

local function give_back(queue, owner)
  local leases = call('HGETALL', P .. 'l:' .. queue)
  for n = 1, #leases, 2 do
    if string.match(leases[n + 1], ' (.*)$') == owner then
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

local function hide(queue, id, milliseconds)
  call('ZADD', P .. 'h:' .. queue, numeral(now + milliseconds), id)
  if milliseconds < SOON then
    ring(queue)
  end
end

local function offer_shared(queue, message, maxsize, limit, delay, ttl, priority)
  local bytes = call('HGET', P .. 'q:' .. queue, 'bytes')
  if not bytes then
    return 'gone'
  end
  bytes = tonumber(bytes)
  if bytes > 0 and bytes + #message > limit then
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
  call('HDEL', P .. 'e:' .. queue, unpack(ids))
  call('HDEL', P .. 'a:' .. queue, unpack(ids))
  call('HINCRBY', P .. 'q:' .. queue, 'bytes', 0 - bytes)
  tell_room(queue)
end

local function is_expired(expiries, n)
  return expiries and expiries[n] and tonumber(expiries[n]) <= now
end

-- The first ones that have not expired: {id, attempt, message, ...} and their ids.
local function pop(queue, limit)
  local found, ids, bytes, gone, gone_bytes = {}, {}, 0, {}, 0
  while #ids < limit and bytes < BATCH_BYTES do
    local many = math.min(limit - #ids, 100)
    if bytes > 0 or many > 1 then  -- not more than a reply carries: large messages come one by one
      local first = call('ZRANGE', P .. 'r:' .. queue, 0, 0)[1]
      many = first and math.max(1, math.min(many, math.floor(BATCH_BYTES / (call('HSTRLEN', P .. 'p:' .. queue, first) + 1)))) or 1
    end
    local popped = call('ZPOPMIN', P .. 'r:' .. queue, many)
    if #popped == 0 then
      break
    end
    local keys = {}
    for n = 1, #popped, 2 do
      keys[#keys + 1] = popped[n]
    end
    local messages = call('HMGET', P .. 'p:' .. queue, unpack(keys))
    local expiries = call('EXISTS', P .. 'e:' .. queue) == 1 and call('HMGET', P .. 'e:' .. queue, unpack(keys))
    local attempts = call('EXISTS', P .. 'a:' .. queue) == 1 and call('HMGET', P .. 'a:' .. queue, unpack(keys))
    for n, id in ipairs(keys) do
      if is_expired(expiries, n) then
        gone[#gone + 1] = id
        gone_bytes = gone_bytes + #messages[n]
      else
        ids[#ids + 1] = id
        bytes = bytes + #messages[n]
        found[#found + 1] = id
        found[#found + 1] = (attempts and tonumber(attempts[n]) or 0) + 1
        found[#found + 1] = messages[n]
      end
    end
  end
  if #gone > 0 then
    call('HINCRBY', P .. 'q:' .. queue, 'expired', #gone)
    forget(queue, gone, gone_bytes)
  end
  return found, ids, bytes
end

local function lease(queue, found, ids, milliseconds)
  local leases, times = {}, {}
  for n, id in ipairs(ids) do
    leases[#leases + 1] = id
    leases[#leases + 1] = found[3 * n - 1] .. ' ' .. ME
    times[#times + 1] = numeral(now + milliseconds)
    times[#times + 1] = id
  end
  call('HSET', P .. 'l:' .. queue, unpack(leases))
  call('ZADD', P .. 'h:' .. queue, unpack(times))
  call('HINCRBY', P .. 'o:' .. queue, ME, #ids)
  tell_room(queue)
  if milliseconds < SOON then
    ring(queue)
  end
end

-- Whether this delivery is still the valid one: the lease's record is gone, or another's, once it has ended.
local function is_leased(queue, id, attempt)
  local found, owner = lease_of(queue, id)
  return found == attempt and owner == ME
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
  return {call('GET', P .. 'pg') or '0', call('SMEMBERS', P .. 'pi'), call('SMEMBERS', P .. 'ps')}
end

local function offer(name, message, wait, ...)
  local outcome = offer_inbox(name, message)
  if outcome == 'gone' then
    outcome = offer_shared(name, message, ...)
  end
  if outcome == 'full' and wait == '1' then
    call('SET', P .. 'fw:' .. name, '', 'PX', 2 * SOON)
  end
  return outcome
end

function operations.send()
  local name, wait, maxsize, limit, delay, ttl, priority = argument(), argument(), number(), number(), number(), number(), number()
  local outcome = offer(name, argument(), wait, maxsize, limit, delay, ttl, priority)
  return {outcome == 'behind' and 'full' or outcome}
end

local function bound_to(topic)
  if not bound[topic] then
    bound[topic] = call('SUNION', P .. 't:' .. topic, P .. 'g:' .. topic)
  end
  return bound[topic]
end

-- The first attempt finds the receivers; the later ones go to those that were full. A receiver that was waited for in vain
-- (`behind`) is not waited for again before it has caught up.
function operations.publish()
  local known, wait, limit, delay, ttl = argument(), argument(), number(), number(), number()
  local topics, names, message = list(), list(), argument()
  if not bound then
    bound, generation = {}, call('GET', P .. 'pg') or '0'
  end
  if known ~= '' and known ~= generation then
    return {'stale'}
  end
  local targets, seen = {}, {}
  local function add(several)
    for _, name in ipairs(several) do
      if not seen[name] then
        seen[name] = true
        targets[#targets + 1] = name
      end
    end
  end
  for _, topic in ipairs(topics) do
    add(bound_to(topic))
  end
  add(names)
  local accepted, full, behind = 0, {}, {}
  for _, name in ipairs(targets) do
    local outcome = offer(name, message, wait, 0, limit, delay, ttl, 0)
    if outcome == 'ok' then
      accepted = accepted + 1
    elseif outcome == 'full' then
      full[#full + 1] = name
    elseif outcome == 'behind' then
      behind[#behind + 1] = name
      call('HINCRBY', P .. 'im:' .. name, 'dropped', 1)
    end
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

-- What has come to an inbox. It stays there until the next fetch says that it has arrived (`done`), so a reply that is lost loses
-- no message; but what was handed out does not count as waiting.
function operations.fetch()
  local name, done, blocks, busy, watch = argument(), number(), argument(), argument(), list()
  local meta, messages = P .. 'im:' .. name, P .. 'i:' .. name
  local values = call('HMGET', meta, 'owner', 'base', 'bytes', 'handed', 'behind')
  if values[1] ~= ME then
    return {'gone'}
  end
  local base, bytes, handed = tonumber(values[2]), tonumber(values[3]), tonumber(values[4])
  if done > base then
    call('LTRIM', messages, done - base, -1)
    base, handed = done, math.max(0, handed - (done - base))
  end
  local count = call('LLEN', messages)
  if values[5] == '1' then
    call('HSET', meta, 'behind', '0')
  end
  if count > 0 then
    local average = bytes / math.max(1, count - handed) + 1
    local found = call('LRANGE', messages, 0, math.max(0, math.min(1000, math.floor(BATCH_BYTES / average)) - 1))
    for n = handed + 1, #found do
      bytes = bytes - #found[n]
    end
    call('HSET', meta, 'base', numeral(base), 'bytes', bytes, 'handed', math.max(handed, #found), 'idle', '0', 'busy', busy)
    tell_room(name)
    return {'ok', numeral(base), found}
  end
  if lost_one(watch) then
    return {'lost'}
  end
  call('DEL', P .. 'w:' .. name)
  call('HSET', meta, 'base', numeral(base), 'bytes', 0, 'handed', 0, 'idle', blocks, 'busy', busy)
  return {'empty', SOON}
end

function operations.take()
  local queue, limit, milliseconds, watch = argument(), number(), number(), list()
  if call('EXISTS', P .. 'q:' .. queue) == 0 then
    return {'gone'}
  end
  show_due(queue)
  local found, ids, bytes = pop(queue, limit)
  is_bulky = is_bulky or bytes > 65536
  if #ids > 0 then
    if milliseconds >= 0 then
      lease(queue, found, ids, milliseconds)
    else
      forget(queue, ids, bytes)
    end
    if call('EXISTS', P .. 'r:' .. queue) == 1 then
      ring(queue)
    end
    return {'ok', found}
  end
  if lost_one(watch) then
    return {'lost'}
  end
  local due = call('ZRANGE', P .. 'h:' .. queue, 0, 0, 'WITHSCORES')[2]
  return {'empty', due and math.max(0, math.min(SOON, tonumber(due) - now)) or SOON}
end

function operations.ack()
  local queue, outcomes, ids, bytes = argument(), {}, {}, 0
  for n = 1, number() do
    local id, attempt = argument(), argument()
    outcomes[n] = is_leased(queue, id, attempt) and 1 or 0
    if outcomes[n] == 1 then
      ids[#ids + 1] = id
      bytes = bytes + call('HSTRLEN', P .. 'p:' .. queue, id)
      call('HDEL', P .. 'l:' .. queue, id)
    end
  end
  if #ids > 0 then
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
    return {waiting(name)}
  end
  return {call('LLEN', P .. 'i:' .. name) - tonumber(call('HGET', P .. 'im:' .. name, 'handed') or '0')}
end

function operations.queues()
  local prefix = argument()
  return call('ZRANGEBYLEX', P .. 'queues', '[' .. prefix, '[' .. prefix .. '\255')
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

function operations.consumers()
  local found = {}
  for _, inbox in ipairs(call('SMEMBERS', P .. 't:' .. argument())) do
    if inbox_owner(inbox) then
      local values = call('HMGET', P .. 'im:' .. inbox, 'handed', 'idle', 'busy')
      local rank = values[3] == '1' and 2 or values[2] == '1' and 0 or 1
      found[#found + 1] = {inbox, call('LLEN', P .. 'i:' .. inbox) - tonumber(values[1] or '0'), rank}
    end
  end
  return found
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

local results = {}
while at <= #ARGV do
  local name, length = argument(), number()
  local after = at + length
  if name ~= 'publish' then
    bound = nil
  end
  local ok, result = pcall(operations[name])
  if not ok then
    result = {'error', type(result) == 'table' and result.err or tostring(result)}
  end
  results[#results + 1] = result
  at = after
end
if NUMBER ~= '' then
  redis.pcall('HSET', memory, 'last', NUMBER, 'result', is_bulky and '' or cmsgpack.pack(results))
end
return results
