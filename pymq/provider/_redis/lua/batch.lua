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
      return cmsgpack.unpack(remembered[2])
    end
  end
end

local results, to_remember, has_changed = {}, {}, false
while at <= #ARGV do
  local name, length = ARGV[at], ARGV[at + 1]
  at = at + 2
  local after = at + length
  if name ~= 'publish' then
    bound = nil
  end
  is_bulky = false
  local ok, result, changes_nothing = pcall(operations[name])
  if not ok then
    local text = type(result) == 'table' and result.err or tostring(result)
    local away = string.match(text, 'READONLY .*') or string.match(text, 'NOREPLICAS .*')
    if away then  -- nothing can be written here, now: another server is responsible, or will be
      return redis.error_reply(away)
    end
    result = {'error', text}
  end
  results[#results + 1] = result
  to_remember[#results] = is_bulky and {'forgotten'} or result
  has_changed = has_changed or not (ok and changes_nothing)
  at = after
end
if has_changed and NUMBER ~= '' then
  redis.pcall('HSET', memory, 'last', NUMBER, 'result', cmsgpack.pack(to_remember))
end
return results
