-- The three steps of moving stock; why they never credit twice is argued in stock_transfer.py.

local TRANSFER = '^(%d+),(%d+),(%d+),(%d+),(.*)$'

-- The lowest number of the open transfers to a target; `number` when none is lower.
local function lowest_open(transfers, target, number)
  local open = server.call('HVALS', transfers)
  for i = 1, #open do
    local there, _, other = string.match(open[i], TRANSFER)
    if there == target then
      number = math.min(number, tonumber(other))
    end
  end
  return number
end

-- KEYS: meta, transfers, moved. ARGV: transfer_id, target, sku, quantity, open_max, window.
-- Reply: units; when the transfer is open, then its epoch, its number and the lowest number that is open to this target.
local function debit(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    return refusal
  end
  local id, target, sku = args[1], args[2], args[3]
  local open = server.call('HGET', keys[2], id)
  if open then
    local there, epoch, number, quantity, what = string.match(open, TRANSFER)
    if there ~= target or what ~= sku then
      return 'OTHER_TRANSFER'
    end
    touch(keys[1])
    number = tonumber(number)
    return { tonumber(quantity), tonumber(epoch), number, lowest_open(keys[2], target, number) }
  end
  local known = server.call('HMGET', keys[3], 'done:' .. id, 'out:' .. target)
  if known[1] then
    return { tonumber(known[1]) }
  end
  local there = server.call('HMGET', keys[1], 'stock:' .. sku, 'buckets', 'epoch')
  if not there[1] then
    return 'NO_SKU'
  elseif tonumber(target) >= tonumber(there[2]) then
    return 'NO_BUCKET'
  end
  local units = math.min(tonumber(args[4]), tonumber(there[1]))
  if units == 0 then
    return { 0 }
  end
  local number = (tonumber(known[2]) or 0) + 1
  local lowest = lowest_open(keys[2], target, number)
  if server.call('HLEN', keys[2]) >= tonumber(args[5]) or number - lowest >= tonumber(args[6]) then
    return 'TRANSFERS_FULL'
  end
  server.call('HSET', keys[2], id, table.concat({ target, there[3], int(number), int(units), sku }, ','))
  server.call('HSET', keys[3], 'out:' .. target, int(number))
  server.call('HINCRBY', keys[1], 'stock:' .. sku, int(-units))
  return { units, tonumber(there[3]), number, lowest }
end

-- KEYS: meta, moved. ARGV: source, epoch, number, lowest, sku, units. Reply: 1 when credited, 0 when it was before.
local function credit(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    return refusal
  end
  local field, number = 'in:' .. args[1], tonumber(args[3])
  local there = server.call('HMGET', keys[1], 'epoch', 'stock:' .. args[5])
  if there[1] ~= args[2] then
    return 'OTHER_EPOCH'
  elseif not there[2] then
    return 'NO_SKU'
  end
  -- "lowest;number;number": all below the lowest have been credited, and of the others those that are named.
  local memory = server.call('HGET', keys[2], field) or '1'
  local floor = tonumber(string.match(memory, '^%d+'))
  if number < floor or string.find(memory .. ';', ';' .. args[3] .. ';', 1, true) then
    touch(keys[1])
    return 0
  end
  floor = math.max(floor, tonumber(args[4]))
  local kept = { int(floor) }
  for word in string.gmatch(memory, ';(%d+)') do
    if tonumber(word) >= floor then
      kept[#kept + 1] = word
    end
  end
  kept[#kept + 1] = int(number)
  server.call('HSET', keys[2], field, table.concat(kept, ';'))
  server.call('HINCRBY', keys[1], 'stock:' .. args[5], args[6])
  server.call('HINCRBY', keys[1], 'version', 1)
  return 1
end

-- KEYS: meta, transfers, moved. ARGV: transfer_id, remembered_max. Reply: 1 when it was open, else 0.
local function close(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    return refusal
  end
  local id = args[1]
  local open = server.call('HGET', keys[2], id)
  if not open then
    return 0
  end
  local _, _, _, quantity = string.match(open, TRANSFER)
  server.call('HDEL', keys[2], id)
  -- A ring of the transfers that ended last: whoever asks again about one of them is told, and moves nothing.
  local ended = tonumber(server.call('HGET', keys[3], 'ended') or 0)
  local slot = 'slot:' .. int(ended % tonumber(args[2]))
  local oldest = server.call('HGET', keys[3], slot)
  if oldest then
    server.call('HDEL', keys[3], 'done:' .. oldest)
  end
  server.call('HSET', keys[3], 'ended', int(ended + 1), slot, id, 'done:' .. id, quantity)
  return 1
end
