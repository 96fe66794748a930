-- ---- operations: remote calls

-- The live inboxes that are bound to a topic: {name, how many messages wait, how busy its receiver is}.
local function receivers(topic)  -- rare
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
local function by_preference(found, turn)  -- rare
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

local function is_ready(inbox, done)  -- rare
  local _, _, _, count = trimmed(inbox, done)
  if count ~= 0 then
    return false
  end
  set_empty(inbox, '1', '0')
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
