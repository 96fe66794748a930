-- ---- inboxes

local function inbox_owner(name)
  local owner = call('HGET', P .. 'im:' .. name, 'owner')
  if owner and owner ~= ME and not lives(owner) then
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
