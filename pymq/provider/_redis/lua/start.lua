-- Everything that the Redis provider does, in one script: a batch of operations, executed as a whole. This is its start; `script.py`
-- says in which order the other files follow.
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
--   d:<inbox>    list    replies, which come past the script            k:<inbox> list  copies of the last of these
local P, ME, NUMBER = KEYS[1], ARGV[1], ARGV[2]
local call, at = redis.call, 3
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONG = 600000          -- what members keep alive is gone ten minutes after the last of them
local SOON = 1000            -- who waits looks again after a second at the latest
local LEVEL = 562949953421312  -- 2^49: an id is its place, the level of its priority times this, plus a counter (`next_id`)
local bound, generation      -- what a publish has looked up, for the next ones of the batch
local alive = {}             -- the owners that live
local is_bulky = false       -- whether the operation's result is too large to be remembered
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

-- A counter that starts as a time, and again when nobody was there for as long as it lasts. The time is in 10 us, which no counter of
-- messages keeps up with: of milliseconds it did, and then an id was given to a second message while the first one waited.
local function next_id()
  local id = call('INCR', P .. 'n')
  if id < 100000000000000 then
    id = time[1] * 100000 + math.floor(time[2] / 10)
    call('SET', P .. 'n', numeral(id), 'PX', LONG)
  end
  return id
end

-- A server without memory refuses a script's first write where that may need some, and none behind another write.
local function go_without_memory()
  call('DEL', P .. '-')
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
  for _, kind in ipairs({'i:', 'im:', 'ib:', 'd:', 'k:', 'w:', 'fw:', 'f:'}) do
    call('DEL', P .. kind .. name)
  end
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
