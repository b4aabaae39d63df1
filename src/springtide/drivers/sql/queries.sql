-- Every query of the ledger, by name. A name is a comment of its own line; the query ends at the next one.

-- name: migrations_table
CREATE TABLE IF NOT EXISTS migrations (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: migrations_applied
SELECT name FROM migrations ORDER BY name;

-- name: migration_done
INSERT INTO migrations (name) VALUES ($1);

-- name: migrations_lock
SELECT pg_advisory_xact_lock(hashtextextended('springtide migrations', 0));

-- name: publish_sale
INSERT INTO sales (sale, title, opens_ms, closes_ms, hold_ms, epoch, buckets)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
RETURNING sale;

-- name: publish_skus
INSERT INTO skus (sale, sku, place, title, price_fen, initial, per_buyer_max)
SELECT $1, sku, place, title, price_fen, initial, per_buyer_max
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::integer[])
    WITH ORDINALITY AS given (sku, title, price_fen, initial, per_buyer_max, place);

-- name: record_orders
INSERT INTO orders (order_id, sale, bucket, buyer, key, sku, quantity, price_fen, reserved_ms, pay_by_ms, changed_ms)
SELECT order_id, given.sale, bucket, buyer, key, given.sku, quantity, price_fen, reserved_ms, pay_by_ms, reserved_ms
FROM unnest(
    $1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[]
) AS given (order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms)
LEFT JOIN skus ON skus.sale = given.sale AND skus.sku = given.sku
ON CONFLICT DO NOTHING;

-- name: record_new_entries
-- Looking for conflicts costs a third of the insert, and there are none but after a crash, or where a payment came before
-- the recorder. So this one is tried first; the next one looks.
WITH recorded AS (
    INSERT INTO orders (
        order_id, sale, bucket, buyer, key, sku, quantity, price_fen, reserved_ms, pay_by_ms, changed_ms
    )
    SELECT order_id, $1, $2, buyer, key, given.sku, quantity, price_fen, reserved_ms, pay_by_ms, reserved_ms
    FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[])
        AS given (order_id, buyer, key, sku, quantity, reserved_ms, pay_by_ms)
    LEFT JOIN skus ON skus.sale = $1 AND skus.sku = given.sku
    RETURNING 1
), moved AS (
    INSERT INTO journal_positions AS positions (sale, bucket, entry_id) VALUES ($1, $2, $10)
    ON CONFLICT (sale, bucket) DO UPDATE SET entry_id = EXCLUDED.entry_id
    -- Ids are milliseconds and a sequence number, joined by '-': they have to be compared as numbers.
    WHERE string_to_array(EXCLUDED.entry_id, '-')::bigint[] > string_to_array(positions.entry_id, '-')::bigint[]
)
SELECT count(*) FROM recorded;

-- name: record_entries
WITH recorded AS (
    INSERT INTO orders (
        order_id, sale, bucket, buyer, key, sku, quantity, price_fen, reserved_ms, pay_by_ms, changed_ms
    )
    SELECT order_id, $1, $2, buyer, key, given.sku, quantity, price_fen, reserved_ms, pay_by_ms, reserved_ms
    FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[])
        AS given (order_id, buyer, key, sku, quantity, reserved_ms, pay_by_ms)
    LEFT JOIN skus ON skus.sale = $1 AND skus.sku = given.sku
    ON CONFLICT DO NOTHING
    RETURNING 1
), moved AS (
    INSERT INTO journal_positions AS positions (sale, bucket, entry_id) VALUES ($1, $2, $10)
    ON CONFLICT (sale, bucket) DO UPDATE SET entry_id = EXCLUDED.entry_id
    -- Ids are milliseconds and a sequence number, joined by '-': they have to be compared as numbers.
    WHERE string_to_array(EXCLUDED.entry_id, '-')::bigint[] > string_to_array(positions.entry_id, '-')::bigint[]
)
SELECT count(*) FROM recorded;

-- name: lock_order
SELECT state, price_fen * quantity AS due_fen FROM orders
WHERE order_id = $1 AND sale = $2 AND buyer = $3
FOR UPDATE;

-- name: payment_outcome
SELECT outcome FROM payments WHERE payment_id = $1;

-- name: add_payment
INSERT INTO payments (payment_id, order_id, amount_fen, outcome, received_ms) VALUES ($1, $2, $3, $4, now_ms())
ON CONFLICT (payment_id) DO NOTHING
RETURNING outcome;

-- name: mark_paid
UPDATE orders SET state = 'paid', changed_ms = now_ms() WHERE order_id = $1 AND state = 'reserved';

-- name: cancel_order
WITH cancelled AS (
    UPDATE orders SET state = 'cancelled', changed_ms = now_ms() WHERE order_id = $1 AND state = 'reserved'
    RETURNING order_id, changed_ms
)
INSERT INTO stock_returns (order_id, opened_ms) SELECT order_id, changed_ms FROM cancelled;

-- name: order_state
SELECT state FROM orders WHERE order_id = $1;

-- name: expire_due
WITH due AS (
    SELECT order_id FROM orders
    WHERE state = 'reserved' AND pay_by_ms <= now_ms() - $1::bigint
    ORDER BY pay_by_ms
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE orders SET state = 'expired', changed_ms = now_ms()
    FROM due WHERE orders.order_id = due.order_id
    RETURNING orders.order_id, changed_ms
), returned AS (
    INSERT INTO stock_returns (order_id, opened_ms) SELECT order_id, changed_ms FROM expired
    RETURNING 1
)
SELECT count(*) FROM returned;

-- name: open_returns
SELECT order_id, sale, bucket, buyer, sku, quantity
FROM stock_returns JOIN orders USING (order_id)
WHERE closed_ms IS NULL
ORDER BY place
LIMIT $1;

-- name: close_returns
UPDATE stock_returns SET closed_ms = now_ms() WHERE order_id = ANY($1::text[]) AND closed_ms IS NULL;

-- name: one_order
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, state, price_fen
FROM orders WHERE order_id = $1;

-- name: orders_of_sale
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, state, price_fen
FROM orders WHERE sale = $1
ORDER BY reserved_ms, order_id;

-- name: totals
SELECT sku, initial, restocked, coalesce(reserved, 0) AS reserved, coalesce(paid, 0) AS paid,
    coalesce(returning_units, 0) AS "returning"
FROM skus
LEFT JOIN (
    SELECT sku,
        sum(quantity) FILTER (WHERE state = 'reserved')::bigint AS reserved,
        sum(quantity) FILTER (WHERE state = 'paid')::bigint AS paid,
        sum(quantity) FILTER (WHERE stock_returns.place IS NOT NULL)::bigint AS returning_units
    FROM orders
    LEFT JOIN stock_returns ON stock_returns.order_id = orders.order_id AND closed_ms IS NULL
    WHERE sale = $1
    GROUP BY sku
) AS held USING (sku)
WHERE sale = $1
ORDER BY place;

-- name: positions
SELECT bucket, entry_id FROM journal_positions WHERE sale = $1;
