#!lua name=springtide

-- The inventory's functions. The files of this folder are joined to one library, in the order that valkey_library.py names.
-- These keys make a bucket, all in the slot of the hash tag {sale:bucket}:
--   meta       hash: definition (JSON), plan, epoch, opens, closes, hold, buckets, paused, version, and of each SKU max:<sku>,
--              stock:<sku>, sold:<sku>; fenced and restoring while it is being rebuilt
--   holders    hash: buyer -> his orders in this bucket, oldest first, with ';' between them, each
--              order_id,key,sku,quantity,reserved_ms,pay_by_ms,state (0 ended, 1 live, 2 paid)
--   journal    stream: an entry has in its field d what one batch sold: buyer and order of each purchase, with ','
--              between all of them
--   restocks   hash: restock id -> quantity,sku
--   transfers  hash: the transfers that are open, id -> target,epoch,number,quantity,sku
--   moved      hash: out:<target> the last number given to a transfer there; in:<source> the numbers that were credited;
--              done:<id> the units of a transfer that has ended; ended and slot:<n>, which bound how many of these there are
-- A field never holds ',' or ';' (the client refuses it), so records need no quoting.
--
-- A script that fails half way keeps what it wrote. Hence in each function everything is read and checked before the first
-- write, and no write after that can fail: types and numbers are known good, and the memory limit is judged before a script
-- starts (functions without allow-oom are refused then). What a function refuses it answers with the refusal's name, which
-- no other answer looks like.

local GROUP = 'recorder'
local ORDER = '([^,;]+),([^,;]+),([^,;]+),(%d+),(%d+),(%d+),([012])'

local function now_ms()
  local time = server.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers above 1e14 would otherwise be written as 1e+14.
local function int(number)
  return string.format('%d', number)
end

-- Pairs of a flat reply as a table.
local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

-- Write many fields: a call of Lua takes no more than some 8,000 values.
local function set_all(key, fields)
  for from = 1, #fields, 4000 do
    server.call('HSET', key, unpack(fields, from, math.min(from + 3999, #fields)))
  end
end

-- Why units may not come or go now; nil when they may. While a bucket is rebuilt its figures come from the ledger: what
-- changed them in between would be lost.
local function refusal_of(meta)
  local values = server.call('HMGET', meta, 'epoch', 'fenced')
  if not values[1] then
    return 'UNPUBLISHED'
  end
  return values[2] and 'FENCED' or nil
end

-- Why what the bucket holds cannot be told now; nil when it can.
local function unreadable(meta)
  local values = server.call('HMGET', meta, 'epoch', 'restoring')
  if not values[1] then
    return 'UNPUBLISHED'
  end
  return values[2] and 'FENCED' or nil
end

-- A write that changes nothing. An answer about what somebody else wrote is as durable as that only when this connection
-- waits for the replicas, and it can only wait for a write of its own. Callers act on "it was done before": they close a row
-- of the ledger, or take the next step.
local function touch(meta)
  server.call('HSET', meta, 'touched', '1')
end

local function group_of(journal)
  return pairs_of(server.call('XINFO', 'GROUPS', journal)[1])
end

-- Entries of a journal that the ledger does not have yet: those delivered and not acknowledged, and those not delivered.
-- Entries that are only kept for `holders` do not count. Valkey knows the lag as long as nobody deletes single entries.
local function unrecorded(journal)
  local group = group_of(journal)
  local after = '(' .. group['last-delivered-id']
  return group['pending'] + (group['lag'] or #server.call('XRANGE', journal, after, '+'))
end
