-- ---- operations: sending

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
