-- KEYS: meta. ARGV: epoch. Reply: 1 when it is fenced, 0 when nothing is left.
local function fence(keys, args)
  local there = server.call('HMGET', keys[1], 'epoch', 'fenced')
  if not there[1] then
    return 0
  end
  local now, wanted = tonumber(there[1]), tonumber(args[1])
  -- An epoch in which the bucket has sold may not be fenced: a rebuild that woke up late would undo another one.
  if wanted < now or (wanted == now and not there[2]) then
    return 'OTHER_EPOCH'
  end
  server.call('HSET', keys[1], 'epoch', args[1], 'paused', '1', 'fenced', '1')
  return 1
end

-- KEYS: meta, holders, journal, restocks, transfers, moved. ARGV: definition and stock.
-- Reply: a token for the parts that follow; 0 when it was restored before.
local function restore_begin(keys, args)
  local there = server.call('HMGET', keys[1], 'epoch', 'fenced', 'paused', 'version')
  if there[1] and there[1] ~= args[2] then
    return 'OTHER_EPOCH'
  elseif there[1] and not there[2] then
    if there[3] ~= '1' then
      return 'SELLING'
    end
    touch(keys[1])
    return 0
  end
  local time = server.call('TIME')
  local token = time[1] .. string.format('%06d', time[2])
  -- Whoever remembers a version remembers a lower one, even when what was counted here is lost.
  local version = math.max(tonumber(there[4] or 0) + 1, now_ms())
  local fields = definition_fields(args)
  for _, word in ipairs({ 'paused', '1', 'fenced', '1', 'restoring', token, 'version', int(version) }) do
    fields[#fields + 1] = word
  end
  add_stock(fields, args)
  server.call('UNLINK', keys[1], keys[2], keys[4], keys[5], keys[6])
  set_all(keys[1], fields)
  if server.call('EXISTS', keys[3]) == 0 or #server.call('XINFO', 'GROUPS', keys[3]) == 0 then
    server.call('XGROUP', 'CREATE', keys[3], GROUP, '0', 'MKSTREAM')
  end
  return { token }
end

-- KEYS: meta, holders. ARGV: token, buyer and entry of each. Reply: 1.
local function restore_part(keys, args)
  if server.call('HGET', keys[1], 'restoring') ~= args[1] then
    return 'OVERTAKEN'
  end
  server.call('HSET', keys[2], unpack(args, 2))
  return 1
end

-- KEYS: meta. ARGV: token. Reply: 1.
local function restore_end(keys, args)
  if server.call('HGET', keys[1], 'restoring') ~= args[1] then
    return 'OVERTAKEN'
  end
  server.call('HDEL', keys[1], 'restoring', 'fenced')
  return 1
end
