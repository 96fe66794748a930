-- ---- operations: who takes part, and what is bound to what

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
  go_without_memory()
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

-- A token, or a reply, that was taken by one who waits no more is the next one's.
function operations.again()
  local kind, name, reply = argument(), argument(), argument()
  if kind == 'd:' then
    call('LPUSH', P .. 'd:' .. name, reply)
    call('PEXPIRE', P .. 'd:' .. name, LONG)
    return {'ok'}
  end
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
