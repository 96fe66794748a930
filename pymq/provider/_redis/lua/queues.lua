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
    go_without_memory()
    call('HSET', P .. 'q:' .. queue, 'checked', now)
  end
end

local function waiting(queue)
  return call('ZCARD', P .. 'r:' .. queue) + call('ZCARD', P .. 'h:' .. queue) - call('HLEN', P .. 'l:' .. queue)
end

local function hide(queue, id, milliseconds)  -- rare
  go_without_memory()
  call('ZADD', P .. 'h:' .. queue, numeral(now + milliseconds), id)
  if milliseconds < SOON then
    ring(queue)
  end
end

local function place(queue, id, delay)
  if delay > 0 then
    hide(queue, id, delay)
  else
    call('ZADD', P .. 'r:' .. queue, id, id)
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
  place(queue, id, delay)
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

-- Ids, attempts and messages of the first ones that have not expired, and how many bytes these are. What has expired is forgotten
-- round by round: the arguments of one call are limited (8000 of unpack's), and an error would come after the ids were removed.
local function pop(queue, limit)
  local ids, attempts, messages, bytes = {}, {}, {}, 0
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
    local gone, gone_bytes = {}, 0
    for n, id in ipairs(keys) do
      local message = found[n]
      if ends and ends[n] and tonumber(ends[n]) <= now then
        gone[#gone + 1] = id
        gone_bytes = gone_bytes + #message
      else
        local last = #ids + 1
        ids[last], messages[last] = id, message
        attempts[last] = counts and counts[n] and tonumber(counts[n]) + 1 or 1
        bytes = bytes + #message
      end
    end
    if #gone > 0 then
      call('HINCRBY', P .. 'q:' .. queue, 'expired', #gone)
      forget(queue, gone, gone_bytes)
    end
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
