-- Where an order stands in its buyer's entry: the place of its first and last character, its SKU, quantity and state.
local function find_order(entry, order)
  -- Order ids are plain text: find them as such, at the start of a record.
  local from = string.find(';' .. entry, ';' .. order .. ',', 1, true)
  if not from then
    return nil
  end
  local _, stop, _, _, sku, quantity, _, _, state = string.find(entry, '^' .. ORDER, from)
  return stop, sku, quantity, state
end

local function set_state(holders, buyer, entry, stop, state)
  server.call('HSET', holders, buyer, string.sub(entry, 1, stop - 1) .. state .. string.sub(entry, stop + 1))
end

-- KEYS: meta, holders. ARGV: buyer, order_id. Reply: 1 when the stock went back, 0 when there was nothing to give.
local function give_back(keys, args)
  local refusal = refusal_of(keys[1])
  if refusal then
    -- "There is nothing to give" would close the case, and the units would be gone when the bucket is there again.
    return refusal
  end
  local buyer = args[1]
  local entry = server.call('HGET', keys[2], buyer)
  local stop, sku, quantity, state = find_order(entry or '', args[2])
  if state ~= '1' then
    touch(keys[1])
    return 0
  end
  set_state(keys[2], buyer, entry, stop, '0')
  server.call('HINCRBY', keys[1], 'stock:' .. sku, quantity)
  server.call('HINCRBY', keys[1], 'version', 1)
  return 1
end

-- KEYS: holders. ARGV: buyer, order_id. Reply: 1 when the order is known to be paid now, 0 when there is none to be paid.
local function settle(keys, args)
  local entry = server.call('HGET', keys[1], args[1])
  local stop, _, _, state = find_order(entry or '', args[2])
  if state == '1' then
    set_state(keys[1], args[1], entry, stop, '2')
  end
  return (state == '1' or state == '2') and 1 or 0
end

-- KEYS: meta, holders. ARGV: buyer, 1 when replicated. Reply: the buyer's entry.
local function orders(keys, args)
  local refusal = unreadable(keys[1])
  if refusal then
    return refusal
  end
  if args[2] == '1' then
    touch(keys[1])
  end
  return { server.call('HGET', keys[2], args[1]) }
end

-- KEYS: meta, journal. Reply: epoch, entries ever journalled, id of the last one, entries that are still there.
local function place(keys, args)
  local refusal = unreadable(keys[1])
  if refusal then
    return refusal
  end
  local journal = pairs_of(server.call('XINFO', 'STREAM', keys[2]))
  return {
    tonumber(server.call('HGET', keys[1], 'epoch')),
    journal['entries-added'], journal['last-generated-id'], journal['length'],
  }
end
