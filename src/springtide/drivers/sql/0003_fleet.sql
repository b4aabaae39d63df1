-- The fleet's state: who leads, what was begun and not ended, what operators want, and what the leader remembers.

-- One row. A term ends when another holder takes the lead, which he can once `until_ms` has passed by this clock.
CREATE TABLE fleet_lead (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    holder text NOT NULL,
    term bigint NOT NULL,
    until_ms bigint NOT NULL
);

CREATE TABLE fleet_intents (
    intent_id text PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    term bigint NOT NULL,
    service text NOT NULL,
    action text NOT NULL,
    at_ms bigint NOT NULL
);

-- Kinds: 'version' (one row, counts the changes), 'service', 'mode' by zone, 'scale' by service. Values are JSON.
CREATE TABLE fleet_wishes (
    kind text NOT NULL CHECK (kind IN ('version', 'service', 'mode', 'scale')),
    name text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (kind, name)
);
INSERT INTO fleet_wishes (kind, name, value) VALUES ('version', '', '0');

CREATE TABLE fleet_memory (
    name text PRIMARY KEY,
    term bigint NOT NULL,
    value bytea NOT NULL,
    at_ms bigint NOT NULL DEFAULT now_ms()
);
