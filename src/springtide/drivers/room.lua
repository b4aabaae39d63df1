#!lua name=springtide_room

-- The waiting rooms' functions. A room's keys are all in the slot of the hash tag {sale:room}:
--   room    hash: id, joined, drawn, seed, serving, state, step, stepped, credit, pace, served, served_units
--   places  hash: buyer -> his place
--   beats   stream: an entry has in p the places that were seen, in MessagePack; its id is when
--   calls   stream: an entry is one move of the line: f(rom), t(o), and in s the numbers skipped, in MessagePack
--   passes  sorted set: numbers that were let in and have not bought, by when their pass ends
-- The load of the counters is in two keys of the slot {springtide:loads}: live (sorted set, by when it was said), loads
-- (hash).
--
-- As in the inventory's functions, everything is read and checked before the first write.

local CHUNK = 4000         -- values that one call may take
local BEATS_KEPT_MS = 120000
local CLOSED_KEPT_MS = 86400000
local LOAD_LIVES_MS = 5000

local function now_ms()
  local time = server.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(number)
  return string.format('%d', number)
end

local function note_seen(beats, packed, now)
  server.call('XADD', beats, 'MINID', '~', int(now - BEATS_KEPT_MS), '*', 'p', packed)
end

-- Writes that make sure of a room, and that the order of its first places is drawn once it opens. `found` is its id,
-- joined and drawn, as HMGET gives them. Reply: id, joined, and whether it is drawn.
local function ensure(room, found, opens, now, seed)
  local id, joined, writes = found[1], tonumber(found[2]) or 0, {}
  if not id then
    -- The seed is secret until the opening, the id is not: the one does not tell the other.
    id = string.sub(server.sha1hex(seed), 1, 16)
    writes = { 'id', id, 'joined', '0', 'step', '0', 'serving', '0', 'state', 'open' }
  end
  local drawn = found[3] ~= false and found[3] ~= nil
  if not drawn and now >= opens then
    drawn = true
    writes[#writes + 1] = 'drawn'
    writes[#writes + 1] = int(joined)
    writes[#writes + 1] = 'seed'
    writes[#writes + 1] = seed
  end
  if #writes > 0 then
    server.call('HSET', room, unpack(writes))
  end
  return id, joined, drawn
end

-- KEYS: room, places, beats. ARGV: opens, seed, places_max, {buyers, lost} in MessagePack. Reply: id, then a place for
-- each, -1 when the room is full.
local function join(keys, args)
  local buyers, lost = unpack(cmsgpack.unpack(args[4]))
  local now, max = now_ms(), tonumber(args[3])
  local found = server.call('HMGET', keys[1], 'id', 'joined', 'drawn')
  local held = server.call('HMGET', keys[2], unpack(buyers))
  local id, joined = ensure(keys[1], found, tonumber(args[1]), now, args[2])
  local first, given, writes, new, reply = joined, {}, {}, {}, { id }
  for i, buyer in ipairs(buyers) do
    local place = given[buyer] or tonumber(held[i] or nil)
    if not place or place == lost[i] then
      place = -1
      if joined < max then
        place = joined
        joined = joined + 1
        given[buyer] = place
        new[#new + 1] = place
        writes[#writes + 1] = buyer
        writes[#writes + 1] = int(place)
      end
    end
    reply[i + 1] = place
  end
  if joined > first then
    server.call('HSET', keys[2], unpack(writes))
    server.call('HSET', keys[1], 'joined', int(joined))
    note_seen(keys[3], cmsgpack.pack(new), now)
  end
  return reply
end

-- KEYS: room. ARGV: opens, seed. Reply: 1 when it is drawn.
local function draw(keys, args)
  local now, opens = now_ms(), tonumber(args[1])
  if now < opens then
    return 0
  end
  ensure(keys[1], server.call('HMGET', keys[1], 'id', 'joined', 'drawn'), opens, now, args[2])
  return 1
end

-- KEYS: room, calls, passes. ARGV: position, count. Reply: now, outstanding, fields of the room, calls.
local function view(keys, args)
  local now = now_ms()
  local fields = server.call(
    'HMGET', keys[1], 'id', 'joined', 'drawn', 'seed', 'serving', 'state', 'served', 'served_units', 'credit',
    'pace', 'step', 'stepped')
  if not fields[1] then
    return {}
  end
  local from = args[1] == '-' and '-' or '(' .. args[1]
  local calls = server.call('XRANGE', keys[2], from, '+', 'COUNT', args[2])
  return { now, server.call('ZCOUNT', keys[3], '(' .. int(now), '+inf'), fields, calls }
end

local function let_in(passes, from, stop, skipped, until_ms)
  local absent, adds = {}, {}
  for _, number in ipairs(skipped) do
    absent[number] = true
  end
  for number = from, stop - 1 do
    if not absent[number] then
      adds[#adds + 1] = until_ms
      adds[#adds + 1] = int(number)
      if #adds >= CHUNK then
        server.call('ZADD', passes, unpack(adds))
        adds = {}
      end
    end
  end
  if #adds > 0 then
    server.call('ZADD', passes, unpack(adds))
  end
end

-- KEYS: room, places, beats, calls, passes. ARGV: id, step, stop, state, credit, pace, pass_ms, called_max, the numbers
-- skipped in MessagePack. Reply: 1, or 0 when another step was first.
local function step(keys, args)
  local found = server.call('HMGET', keys[1], 'id', 'step', 'serving', 'joined', 'state')
  if found[1] ~= args[1] or found[2] ~= args[2] then
    return 0
  end
  local now, serving, stop = now_ms(), tonumber(found[3]), tonumber(args[3])
  if stop < serving or stop > tonumber(found[4]) or stop - serving > tonumber(args[8]) then
    return 0
  end
  local skipped = cmsgpack.unpack(args[9])
  server.call('ZREMRANGEBYSCORE', keys[5], '-inf', int(now))
  if stop > serving then
    let_in(keys[5], serving, stop, skipped, int(now + tonumber(args[7])))
    server.call(
      'XADD', keys[4], 'MINID', '~', int(now - tonumber(args[7])), '*', 'f', int(serving), 't', int(stop),
      's', args[9])
  end
  server.call(
    'HSET', keys[1], 'step', int(tonumber(found[2]) + 1), 'serving', int(stop), 'state', args[4], 'credit', args[5],
    'pace', args[6], 'stepped', int(now))
  if found[5] ~= args[4] and (args[4] == 'closed' or found[5] == 'closed') then
    for i = 1, #keys do
      if args[4] == 'closed' then
        server.call('PEXPIRE', keys[i], CLOSED_KEPT_MS)
      else
        server.call('PERSIST', keys[i])
      end
    end
  end
  return 1
end

-- KEYS: room, beats, passes. ARGV: id, places seen, numbers served (both in MessagePack), units served. Reply: 1, or 0
-- when the room is another.
local function report(keys, args)
  if server.call('HGET', keys[1], 'id') ~= args[1] then
    return 0
  end
  local served, used = cmsgpack.unpack(args[3]), 0
  if #cmsgpack.unpack(args[2]) > 0 then
    note_seen(keys[2], args[2], now_ms())
  end
  for from = 1, #served, CHUNK do
    used = used + server.call('ZREM', keys[3], unpack(served, from, math.min(from + CHUNK - 1, #served)))
  end
  if used > 0 then
    server.call('HINCRBY', keys[1], 'served', used)
    server.call('HINCRBY', keys[1], 'served_units', args[4])
  end
  return 1
end

-- KEYS: live, loads. ARGV: counter, load.
local function declare(keys, args)
  local now = now_ms()
  local gone = server.call('ZRANGEBYSCORE', keys[1], '-inf', int(now - LOAD_LIVES_MS))
  for _, counter in ipairs(gone) do
    server.call('HDEL', keys[2], counter)
    server.call('ZREM', keys[1], counter)
  end
  server.call('ZADD', keys[1], int(now), args[1])
  server.call('HSET', keys[2], args[1], args[2])
  return 1
end

-- KEYS: live, loads. Reply: the loads of the counters that are live.
local function loads(keys, args)
  local live = server.call('ZRANGEBYSCORE', keys[1], '(' .. int(now_ms() - LOAD_LIVES_MS), '+inf')
  local found = {}
  for i, counter in ipairs(live) do
    found[i] = server.call('HGET', keys[2], counter)
  end
  return found
end

local function register(name, callback, ...)
  server.register_function{ function_name = 'springtide_room_' .. name, callback = callback, flags = { ... } }
end

register('join', join)
register('draw', draw)
register('step', step)
register('report', report)
register('declare', declare)
register('view', view, 'no-writes')
register('loads', loads, 'no-writes')
