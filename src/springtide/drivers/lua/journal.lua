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

-- Whether the entry id a comes before b; both are milliseconds and a sequence number, joined by '-'.
local function is_before(a, b)
  local a_ms, a_sequence = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_sequence = string.match(b, '^(%d+)-(%d+)$')
  if a_ms == b_ms then
    return tonumber(a_sequence) < tonumber(b_sequence)
  end
  return tonumber(a_ms) < tonumber(b_ms)
end

-- The first id that may still be wanted for recording: of the lowest entry that is open, or else the next to be delivered.
local function first_open(journal)
  local open = server.call('XPENDING', journal, GROUP)
  if open[1] > 0 then
    return open[2]
  end
  local ms, sequence = string.match(group_of(journal)['last-delivered-id'], '^(%d+)-(%d+)$')
  return ms .. '-' .. int(sequence + 1)
end

-- KEYS: journal. ARGV: retain_ms, retained_max, entry ids. Drops what is acknowledged with everything before it, once it is
-- retain_ms old, or when more than retained_max entries would be kept for their age alone.
local function acknowledge(keys, args)
  local journal = keys[1]
  if server.call('EXISTS', journal) == 0 then
    return 0
  end
  local done = server.call('XACK', journal, GROUP, unpack(args, 3))
  local first, young = first_open(journal), int(now_ms() - tonumber(args[1])) .. '-0'
  local kept = server.call('XLEN', journal) - unrecorded(journal)
  if is_before(young, first) and kept <= tonumber(args[2]) then
    first = young
  end
  server.call('XTRIM', journal, 'MINID', '=', first)
  return done
end

-- KEYS: journal. Reply: entries that the ledger does not have.
local function depth(keys, args)
  if server.call('EXISTS', keys[1]) == 0 then
    return 0
  end
  return unrecorded(keys[1])
end
