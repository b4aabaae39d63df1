-- What all functions that write a definition are given: definition, epoch, opens, closes, hold, buckets, the number of SKUs,
-- then sku and max of each. The rest of ARGV is their own.
local DEFINITION_ARGS = 7

local function definition_fields(args)
  local fields = {
    'definition', args[1], 'epoch', args[2], 'opens', args[3], 'closes', args[4], 'hold', args[5], 'buckets', args[6],
  }
  for i = 1, tonumber(args[7]) do
    fields[#fields + 1] = 'max:' .. args[DEFINITION_ARGS + 2 * i - 1]
    fields[#fields + 1] = args[DEFINITION_ARGS + 2 * i]
  end
  return fields
end

-- Add the stock of each SKU, which follows the definition.
local function add_stock(fields, args)
  local n = tonumber(args[7])
  for i = 1, n do
    fields[#fields + 1] = 'stock:' .. args[DEFINITION_ARGS + 2 * i - 1]
    fields[#fields + 1] = args[DEFINITION_ARGS + 2 * n + i]
  end
end

-- KEYS: meta, holders, journal. ARGV: definition and stock, then the plan: what of the definition decides about units.
-- Reply: 1 when the bucket was created, 0 when it was there, 2 when it was there with another title, window, hold or limit.
local function publish(keys, args)
  local plan = args[#args]
  local there = server.call('HMGET', keys[1], 'plan', 'definition', 'epoch')
  if there[3] then
    if there[1] ~= plan then
      return 'OTHER_PLAN'
    end
    touch(keys[1])
    return there[2] == args[1] and 0 or 2
  end
  if server.call('EXISTS', keys[2], keys[3]) > 0 then
    return 'REMAINS'
  end
  local fields = definition_fields(args)
  for _, word in ipairs({ 'plan', plan, 'paused', '0', 'version', '0' }) do
    fields[#fields + 1] = word
  end
  add_stock(fields, args)
  server.call('XGROUP', 'CREATE', keys[3], GROUP, '0', 'MKSTREAM')
  set_all(keys[1], fields)
  return 1
end

-- KEYS: meta. ARGV: definition. Reply: 1.
local function redefine(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    return refusal
  end
  local there = pairs_of(server.call('HGETALL', keys[1]))
  if there['epoch'] ~= args[2] then
    return 'OTHER_EPOCH'
  elseif there['buckets'] ~= args[6] then
    return 'OTHER_BUCKETS'
  end
  local fields, kept = definition_fields(args), {}
  for i = 1, #fields, 2 do
    kept[fields[i]] = true
  end
  for name in pairs(there) do
    if string.sub(name, 1, 4) == 'max:' and not kept[name] then
      return 'SKU_LOST'
    end
  end
  set_all(keys[1], fields)
  for i = 1, tonumber(args[7]) do
    server.call('HSETNX', keys[1], 'stock:' .. args[DEFINITION_ARGS + 2 * i - 1], '0')
  end
  return 1
end

-- KEYS: meta. ARGV: 1 or 0. Reply: 1.
local function pause(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal == 'UNPUBLISHED' or (refusal and args[1] == '0') then
    return refusal
  end
  server.call('HSET', keys[1], 'paused', args[1])
  return 1
end

-- KEYS: meta, restocks. ARGV: restock_id, sku, quantity, restocks_max, stock_max. Reply: 1 when added, 0 when it was there.
local function restock(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    return refusal
  end
  local record = args[3] .. ',' .. args[2]
  local known = server.call('HGET', keys[2], args[1])
  if known then
    if known ~= record then
      return 'OTHER_RESTOCK'
    end
    touch(keys[1])
    return 0
  end
  local stock = tonumber(server.call('HGET', keys[1], 'stock:' .. args[2]))
  if not stock then
    return 'NO_SKU'
  elseif stock + tonumber(args[3]) > tonumber(args[5]) then
    return 'STOCK_FULL'
  elseif server.call('HLEN', keys[2]) >= tonumber(args[4]) then
    return 'RESTOCKS_FULL'
  end
  server.call('HSET', keys[2], args[1], record)
  server.call('HINCRBY', keys[1], 'stock:' .. args[2], args[3])
  server.call('HINCRBY', keys[1], 'version', 1)
  return 1
end

-- KEYS: meta, journal, transfers. Reply: now_ms, id of the last journal entry, meta, open transfers; empty when not published.
local function cut(keys, args)
  local fields = server.call('HGETALL', keys[1])
  if #fields == 0 then
    return {}
  end
  local journal = pairs_of(server.call('XINFO', 'STREAM', keys[2]))
  return { now_ms(), journal['last-generated-id'], fields, server.call('HGETALL', keys[3]) }
end
