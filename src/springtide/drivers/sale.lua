#!lua name=springtide

-- The inventory's functions. Three keys make a bucket, all in the slot of the hash tag {sale:bucket}:
--   meta     hash: definition (JSON), epoch, opens, closes, hold, paused, version, max:<sku>, stock:<sku>
--   holders  hash: buyer -> his orders in this bucket, oldest first, with ';' between them, each
--            order_id,key,sku,quantity,reserved_ms,pay_by_ms,live
--   journal  stream: an entry has in its field d what one batch sold: buyer and order of each purchase, with ','
--            between all of them
-- A field never holds ',' or ';' (the client refuses it), so records need no quoting.
--
-- A script that fails half way keeps what it wrote. Hence in each function everything is read and checked before the first
-- write, and no write after that can fail: types and numbers are known good, and the memory limit is judged before a script
-- starts (functions without allow-oom are refused then).

local GROUP = 'recorder'
local ORDER = '([^,;]+),([^,;]+),([^,;]+),(%d+),(%d+),(%d+),([01])'

local function now_ms()
  local time = server.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers above 1e14 would otherwise be written as 1e+14.
local function int(number)
  return string.format('%d', number)
end

-- The state of the sale, with the figures of the SKUs that this list names.
local function load_sale(meta, skus)
  local fields, names, seen = { 'epoch', 'opens', 'closes', 'paused', 'hold' }, {}, {}
  for i = 1, #skus do
    local sku = skus[i]
    if not seen[sku] then
      seen[sku] = true
      names[#names + 1] = sku
      fields[#fields + 1] = 'stock:' .. sku
      fields[#fields + 1] = 'max:' .. sku
    end
  end
  local values = server.call('HMGET', meta, unpack(fields))
  local stock, max = {}, {}
  for i, sku in ipairs(names) do
    stock[sku] = tonumber(values[4 + 2 * i])
    max[sku] = tonumber(values[5 + 2 * i])
  end
  return {
    epoch = tonumber(values[1]), opens = tonumber(values[2]), closes = tonumber(values[3]),
    paused = values[4] == '1', hold = tonumber(values[5]), stock = stock, max = max,
  }
end

-- What a buyer's entry says about a purchase: the answer when its key is known, else the units of the SKU that he holds
-- live, the newest such order, and how many orders are remembered.
local function look(entry, key, sku, quantity)
  local held, newest, count = 0, '', 0
  for order, old_key, old_sku, old_quantity, _, pay_by, live in string.gmatch(entry, ORDER) do
    if old_key == key then
      if old_sku ~= sku or tonumber(old_quantity) ~= quantity then
        return 'K'
      end
      return 'A', order .. ',' .. pay_by .. ',' .. live
    end
    count = count + 1
    if live == '1' and old_sku == sku then
      held = held + tonumber(old_quantity)
      newest = order .. ',' .. pay_by .. ',1'
    end
  end
  return nil, newest, held, count
end

-- The letter of the state that refuses every new purchase now; nil when the sale sells.
local function closed_letter(sale, now)
  if now < sale.opens then
    return 'N'
  elseif now >= sale.closes then
    return 'C'
  elseif sale.paused then
    return 'P'
  end
  return nil
end

-- KEYS: meta, holders, journal. ARGV: journal_lag_max, orders_max, the batch: seven columns in MessagePack.
-- Reply: pay_by_ms of what is sold now, one letter for each purchase, then "order_id,pay_by_ms,live" for each A and M.
-- A repeated, K key reused, L late, E stale epoch, N not open, C closed, P paused, U unknown SKU, M limit, S sold out,
-- J journal full, R reserved.
local function reserve(keys, args)
  local orders, buyers, names, skus, quantities, epochs, deadlines = unpack(cmsgpack.unpack(args[3]))
  local meta, holders, journal, n = keys[1], keys[2], keys[3], #orders
  local now, sale = now_ms(), load_sale(meta, skus)
  if not sale.epoch then
    return { 0, string.rep('U', n) }
  end
  local entries = server.call('HMGET', holders, unpack(buyers))
  local room, orders_max = server.call('XLEN', journal) < tonumber(args[1]), tonumber(args[2])
  local stock, max, epoch, refusal = sale.stock, sale.max, sale.epoch, closed_letter(sale, now)
  local pay_by = now + sale.hold
  local suffix = ',' .. int(now) .. ',' .. int(pay_by) .. ',1'

  local slots = {}        -- buyer -> where his new entry stands in `writes`
  local writes, written = {}, 0
  local sold, row = {}, 0
  local taken, letters, details = {}, {}, {}
  local texts = {}        -- quantity -> as text: formatting a number costs as much as all the rest of a row

  for i = 1, n do
    local buyer, sku, quantity = buyers[i], skus[i], quantities[i]
    local slot, left = slots[buyer], stock[sku]
    local entry = slot and writes[slot] or entries[i]
    local letter, detail, held, count = nil, '', 0, 0
    if entry then
      letter, detail, held, count = look(entry, names[i], sku, quantity)
    end
    if letter then
      -- His key decided it, whatever the state of the sale.
    elseif now > deadlines[i] then
      letter = 'L'
    elseif epochs[i] ~= epoch then
      letter = 'E'
    elseif refusal then
      letter = refusal
    elseif not left then
      letter = 'U'
    elseif held + quantity > max[sku] or count >= orders_max then
      letter = 'M'
    elseif quantity > left then
      letter = 'S'
    elseif not room then
      letter = 'J'
    else
      letter = 'R'
      local order, name, text = orders[i], names[i], texts[quantity]
      if not text then
        text = int(quantity)
        texts[quantity] = text
      end
      stock[sku] = left - quantity
      taken[sku] = (taken[sku] or 0) + quantity
      local record = order .. ',' .. name .. ',' .. sku .. ',' .. text .. suffix
      sold[row + 1], sold[row + 2] = buyer, record
      row = row + 2
      if not slot then
        slot = written + 2
        slots[buyer] = slot
        writes[written + 1] = buyer
        written = slot
      end
      writes[slot] = entry and entry .. ';' .. record or record
    end
    letters[i] = letter
    if letter == 'A' or letter == 'M' then
      details[#details + 1] = detail
    end
  end

  if row > 0 then
    for sku, quantity in pairs(taken) do
      server.call('HINCRBY', meta, 'stock:' .. sku, int(-quantity))
    end
    server.call('HSET', holders, unpack(writes))
    server.call('XADD', journal, '*', 'd', table.concat(sold, ','))
  end
  return { pay_by, table.concat(letters), unpack(details) }
end

-- KEYS: meta, holders. ARGV: buyer, order_id. Reply: 1 when the stock went back, 0 when there was nothing to give.
local function give_back(keys, args)
  local buyer, order = args[1], args[2]
  local entry = server.call('HGET', keys[2], buyer)
  if not entry then
    return 0
  end
  -- Order ids are plain text: find them as such, at the start of a record.
  local from = string.find(';' .. entry, ';' .. order .. ',', 1, true)
  if not from then
    return 0
  end
  local _, stop, _, _, sku, quantity, _, _, live = string.find(entry, '^' .. ORDER, from)
  if live ~= '1' then
    return 0
  end
  if not tonumber(server.call('HGET', keys[1], 'stock:' .. sku)) then
    return server.error_reply('UNPUBLISHED the sale of this order is not here')
  end
  server.call('HSET', keys[2], buyer, string.sub(entry, 1, stop - 1) .. '0' .. string.sub(entry, stop + 1))
  server.call('HINCRBY', keys[1], 'stock:' .. sku, quantity)
  server.call('HINCRBY', keys[1], 'version', 1)
  return 1
end

-- KEYS: meta and journal of each bucket. ARGV: definition, epoch, opens, closes, hold, the number of SKUs, sku and max of
-- each, then for each bucket the stock of each SKU. Reply: 1 when it was created, 0 when it was there.
local function publish(keys, args)
  for i = 1, #keys do
    if server.call('EXISTS', keys[i]) == 1 then
      return 0
    end
  end
  local n = tonumber(args[6])
  for bucket = 0, #keys / 2 - 1 do
    local fields = {
      'definition', args[1], 'epoch', args[2], 'opens', args[3], 'closes', args[4], 'hold', args[5],
      'paused', '0', 'version', '0',
    }
    for i = 1, n do
      local sku = args[5 + 2 * i]
      fields[#fields + 1] = 'max:' .. sku
      fields[#fields + 1] = args[6 + 2 * i]
      fields[#fields + 1] = 'stock:' .. sku
      fields[#fields + 1] = args[6 + 2 * n + n * bucket + i]
    end
    server.call('XGROUP', 'CREATE', keys[2 * bucket + 2], GROUP, '0', 'MKSTREAM')
    server.call('HSET', keys[2 * bucket + 1], unpack(fields))
  end
  return 1
end

-- KEYS: meta of each bucket. ARGV: 1 or 0. Reply: 1, or 0 when the sale is not published.
local function pause(keys, args)
  for i = 1, #keys do
    if server.call('EXISTS', keys[i]) == 0 then
      return 0
    end
  end
  for i = 1, #keys do
    server.call('HSET', keys[i], 'paused', args[1])
  end
  return 1
end

-- Pairs of a flat reply as a table.
local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

-- KEYS: meta, journal. Reply: now_ms, id of the last journal entry, then the fields of meta; empty when not published.
local function cut(keys, args)
  local fields = server.call('HGETALL', keys[1])
  if #fields == 0 then
    return {}
  end
  local journal = pairs_of(server.call('XINFO', 'STREAM', keys[2]))
  return { now_ms(), journal['last-generated-id'], unpack(fields) }
end

local function append_stream(found, reply)
  if reply then
    for _, entry in ipairs(reply[1][2]) do
      found[#found + 1] = entry
    end
  end
end

-- KEYS: journal. ARGV: consumer, count, idle_ms. Reply: entries as XREADGROUP gives them; none when not published.
local function read(keys, args)
  if server.call('EXISTS', keys[1]) == 0 then
    return {}
  end
  local journal, consumer, count, found = keys[1], args[1], tonumber(args[2]), {}
  local function group_read(from)
    append_stream(found, server.call(
      'XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count - #found, 'STREAMS', journal, from))
  end
  group_read('0')
  if #found < count then
    local mine = {}
    for _, entry in ipairs(found) do
      mine[entry[1]] = true
    end
    -- Own entries that were idle have just been delivered again, so a claim cannot repeat them.
    local claimed = server.call(
      'XAUTOCLAIM', journal, GROUP, consumer, args[3], '0', 'COUNT', count - #found)
    for _, entry in ipairs(claimed[2]) do
      if not mine[entry[1]] then
        found[#found + 1] = entry
      end
    end
  end
  if #found < count then
    group_read('>')
  end
  return found
end

local function group_of(journal)
  return pairs_of(server.call('XINFO', 'GROUPS', journal)[1])
end

-- KEYS: journal. ARGV: entry ids. Drops what is acknowledged with everything before it.
local function acknowledge(keys, args)
  if server.call('EXISTS', keys[1]) == 0 then
    return 0
  end
  local done = server.call('XACK', keys[1], GROUP, unpack(args))
  local open = server.call('XPENDING', keys[1], GROUP)
  if open[1] > 0 then
    server.call('XTRIM', keys[1], 'MINID', '=', open[2])
  else
    local ms, sequence = string.match(group_of(keys[1])['last-delivered-id'], '^(%d+)-(%d+)$')
    server.call('XTRIM', keys[1], 'MINID', '=', ms .. '-' .. int(sequence + 1))
  end
  return done
end

-- KEYS: journal. Reply: entries delivered and not acknowledged, and those not delivered yet.
local function depth(keys, args)
  if server.call('EXISTS', keys[1]) == 0 then
    return 0
  end
  local group = group_of(keys[1])
  local after = '(' .. group['last-delivered-id']
  -- The group's own `lag` is unknown after some trims; what follows the last delivered entry is always known.
  return group['pending'] + (group['lag'] or #server.call('XRANGE', keys[1], after, '+'))
end

local function register(name, callback, ...)
  server.register_function{ function_name = 'springtide_' .. name, callback = callback, flags = { ... } }
end

register('reserve', reserve)
register('publish', publish)
-- These free memory or need none, and must go on when there is no more: that is how an overfull store recovers.
register('give_back', give_back, 'allow-oom')
register('pause', pause, 'allow-oom')
register('read', read, 'allow-oom')
register('acknowledge', acknowledge, 'allow-oom')
register('cut', cut, 'no-writes')
register('depth', depth, 'no-writes')
