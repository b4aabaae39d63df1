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
-- live or paid, the newest such order, and how many orders are remembered.
local function look(entry, key, sku, quantity)
  local held, newest, count = 0, '', 0
  for order, old_key, old_sku, old_quantity, _, pay_by, state in string.gmatch(entry, ORDER) do
    if old_key == key then
      if old_sku ~= sku or tonumber(old_quantity) ~= quantity then
        return 'K'
      end
      return 'A', order .. ',' .. pay_by .. (state == '0' and ',0' or ',1')
    end
    count = count + 1
    if state ~= '0' and old_sku == sku then
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

-- KEYS: meta, holders, journal. ARGV: journal_lag_max, orders_max, 1 when replicated, the batch: seven columns in
-- MessagePack.
-- Reply: pay_by_ms of what is sold now, one letter for each purchase, then "order_id,pay_by_ms,live" for each A and M.
-- A repeated, K key reused, L late, E stale epoch, N not open, C closed, P paused, U unknown SKU, M limit, S sold out,
-- J journal full, R reserved.
local function reserve(keys, args)
  local orders, buyers, names, skus, quantities, epochs, deadlines = unpack(cmsgpack.unpack(args[4]))
  local meta, holders, journal, n = keys[1], keys[2], keys[3], #orders
  local now, sale = now_ms(), load_sale(meta, skus)
  if not sale.epoch then
    return { 0, string.rep('U', n) }
  end
  local entries = server.call('HMGET', holders, unpack(buyers))
  local lag_max, orders_max = tonumber(args[1]), tonumber(args[2])
  -- The journal is never shorter than what is unrecorded, so the exact figure is needed only when it is long.
  local room = server.call('XLEN', journal) < lag_max or unrecorded(journal) < lag_max
  local stock, max, epoch, refusal = sale.stock, sale.max, sale.epoch, closed_letter(sale, now)
  local pay_by = now + sale.hold
  local suffix = ',' .. int(now) .. ',' .. int(pay_by) .. ',1'

  local slots = {}        -- buyer -> where his new entry stands in `writes`
  local writes, written = {}, 0
  local sold, row = {}, 0
  local taken, letters, details = {}, {}, {}
  local told = false      -- whether an answer is about an order that was there before
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
      told = true
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
      told = true
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
      server.call('HINCRBY', meta, 'sold:' .. sku, int(quantity))
    end
    server.call('HSET', holders, unpack(writes))
    server.call('XADD', journal, '*', 'd', table.concat(sold, ','))
  elseif told and args[3] == '1' then
    touch(meta)
  end
  return { pay_by, table.concat(letters), unpack(details) }
end
