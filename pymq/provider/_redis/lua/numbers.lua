-- ---- operations: numbers and names

function operations.size()
  local name = argument()
  if call('EXISTS', P .. 'q:' .. name) == 1 then
    show_due(name)
    return waiting(name), true
  end
  return call('LLEN', P .. 'i:' .. name) + call('LLEN', P .. 'd:' .. name) - tonumber(call('HGET', P .. 'im:' .. name, 'handed') or '0'), true
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
    local waiting = call('LLEN', P .. 'i:' .. inbox) + call('LLEN', P .. 'd:' .. inbox) - handed
    found[#found + 1] = {inbox, waiting, 0, dropped, 0}
  end
  return found
end
