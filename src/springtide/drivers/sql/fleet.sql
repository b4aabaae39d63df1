-- Every query of the fleet's state, by name. A name is a comment of its own line; the query ends at the next one.
-- Each write of a leader locks the row of the lead in the same statement: it counts the rows with its term, and where
-- that is none, another leads and nothing was written. Whoever takes the lead waits for those that came before him.

-- name: lead
INSERT INTO fleet_lead (holder, term, until_ms) VALUES ($1, 1, now_ms() + $2)
ON CONFLICT (single) DO UPDATE SET
    holder = EXCLUDED.holder,
    term = fleet_lead.term + (fleet_lead.holder <> EXCLUDED.holder)::int,
    until_ms = now_ms() + $2
WHERE fleet_lead.holder = EXCLUDED.holder OR fleet_lead.until_ms <= now_ms()
RETURNING holder, term, until_ms;

-- name: leader
-- Where the one before changed nothing; a statement of its own, to see what it had to wait for.
SELECT holder, term, until_ms FROM fleet_lead;

-- name: resign
UPDATE fleet_lead SET holder = '', until_ms = 0 WHERE holder = $1 AND term = $2;

-- name: begin
WITH leader AS (
    SELECT term FROM fleet_lead WHERE term = $1 FOR SHARE
), begun AS (
    INSERT INTO fleet_intents (intent_id, term, service, action, at_ms)
    SELECT given.intent_id, leader.term, given.service, given.action, given.at_ms
    FROM leader, unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) WITH ORDINALITY
        AS given (intent_id, service, action, at_ms, place)
    ORDER BY given.place
    ON CONFLICT (intent_id) DO NOTHING
)
SELECT count(*) FROM leader;

-- name: end
WITH leader AS (
    SELECT term FROM fleet_lead WHERE term = $1 FOR SHARE
), struck AS (
    DELETE FROM fleet_intents USING leader WHERE intent_id = ANY ($2::text[])
)
SELECT count(*) FROM leader;

-- name: open_intents
SELECT intent_id, term, service, action, at_ms FROM fleet_intents ORDER BY place;

-- name: remember
WITH leader AS (
    SELECT term FROM fleet_lead WHERE term = $1 FOR SHARE
), kept AS (
    INSERT INTO fleet_memory (name, term, value) SELECT $2, leader.term, $3 FROM leader
    ON CONFLICT (name) DO UPDATE SET term = EXCLUDED.term, value = EXCLUDED.value, at_ms = now_ms()
)
SELECT count(*) FROM leader;

-- name: recall
SELECT value FROM fleet_memory WHERE name = $1;

-- name: wishes
SELECT kind, name, value FROM fleet_wishes;

-- name: wish_version
UPDATE fleet_wishes SET value = (value::bigint + 1)::text WHERE kind = 'version';

-- name: wish
SELECT value FROM fleet_wishes WHERE kind = $1 AND name = $2;

-- name: put_wish
INSERT INTO fleet_wishes (kind, name, value) VALUES ($1, $2, $3)
ON CONFLICT (kind, name) DO UPDATE SET value = EXCLUDED.value;

-- name: remove_wish
DELETE FROM fleet_wishes WHERE kind = $1 AND name = $2;
