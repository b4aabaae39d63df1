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
INSERT INTO sales (sale, title, opens_ms, closes_ms, hold_ms, epoch, buckets, waiting_room, pay_url)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (sale) DO UPDATE SET
    title = EXCLUDED.title, opens_ms = EXCLUDED.opens_ms, closes_ms = EXCLUDED.closes_ms, hold_ms = EXCLUDED.hold_ms,
    epoch = EXCLUDED.epoch, buckets = EXCLUDED.buckets, waiting_room = EXCLUDED.waiting_room,
    pay_url = EXCLUDED.pay_url, stage = 'published', revision = sales.revision + 1, changed_ms = now_ms()
WHERE sales.stage = 'draft'
RETURNING sale;

-- name: create_sale
INSERT INTO sales (sale, title, opens_ms, closes_ms, hold_ms, epoch, buckets, waiting_room, pay_url, stage)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'draft')
ON CONFLICT DO NOTHING
RETURNING sale;

-- name: change_sale
UPDATE sales SET
    title = $2, opens_ms = $3, closes_ms = $4, hold_ms = $5, epoch = $6, buckets = $7, waiting_room = $8, pay_url = $9,
    revision = revision + 1, changed_ms = now_ms()
WHERE sale = $1;

-- name: change_epoch
UPDATE sales SET epoch = $2, revision = revision + 1, changed_ms = now_ms() WHERE sale = $1;

-- name: lock_sale
SELECT stage, revision, epoch, buckets FROM sales WHERE sale = $1 FOR UPDATE;

-- name: close_sale
UPDATE sales SET stage = 'closed', revision = revision + 1, changed_ms = now_ms()
WHERE sale = $1 AND stage <> 'closed';

-- name: remove_skus
DELETE FROM skus WHERE sale = $1;

-- name: sku_names
SELECT sku FROM skus WHERE sale = $1;

-- name: put_skus
-- What a SKU of a published sale began with, and whether it is spread, stays.
INSERT INTO skus (sale, sku, place, title, price_fen, initial, per_buyer_max, spread)
SELECT $1, sku, place, title, price_fen, initial, per_buyer_max, spread
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::integer[], $7::boolean[])
    WITH ORDINALITY AS given (sku, title, price_fen, initial, per_buyer_max, spread, place)
ON CONFLICT (sale, sku) DO UPDATE SET
    place = EXCLUDED.place, title = EXCLUDED.title, price_fen = EXCLUDED.price_fen,
    per_buyer_max = EXCLUDED.per_buyer_max;

-- name: sale_records
SELECT sale, title, opens_ms, closes_ms, hold_ms, epoch, buckets, waiting_room, pay_url, stage, revision, changed_ms
FROM sales WHERE sale > $1
ORDER BY sale
LIMIT $2;

-- name: sale_record
SELECT sale, title, opens_ms, closes_ms, hold_ms, epoch, buckets, waiting_room, pay_url, stage, revision, changed_ms
FROM sales WHERE sale = $1;

-- name: skus_of_sales
SELECT sale, sku, title, price_fen, initial AS stock, per_buyer_max, spread
FROM skus WHERE sale = ANY($1::text[])
ORDER BY sale, place;

-- name: restock
SELECT restock_id, sale, sku, quantity FROM restocks WHERE restock_id = $1;

-- name: add_restock
WITH added AS (
    INSERT INTO restocks (restock_id, sale, sku, quantity) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
    RETURNING sale, sku, quantity
)
UPDATE skus SET restocked = restocked + added.quantity
FROM added WHERE skus.sale = added.sale AND skus.sku = added.sku
RETURNING skus.sku;

-- name: open_restocks
SELECT restock_id, sale, sku, quantity FROM restocks
WHERE closed_ms IS NULL
ORDER BY place
LIMIT $1;

-- name: close_restocks
UPDATE restocks SET closed_ms = now_ms() WHERE restock_id = ANY($1::text[]) AND closed_ms IS NULL;

-- name: record_orders
-- In their order: of two with one key, the first is the order.
INSERT INTO orders (order_id, sale, bucket, buyer, key, sku, quantity, price_fen, reserved_ms, pay_by_ms, changed_ms)
SELECT order_id, given.sale, bucket, buyer, key, given.sku, quantity, price_fen, reserved_ms, pay_by_ms, reserved_ms
FROM unnest(
    $1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[]
) WITH ORDINALITY AS given (order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, number)
LEFT JOIN skus ON skus.sale = given.sale AND skus.sku = given.sku
ORDER BY number
ON CONFLICT DO NOTHING;

-- name: staging_table
-- Each connection's own: rows come into it by COPY, which is cheaper than arrays, and leave it with the transaction.
CREATE TEMPORARY TABLE staged_orders (
    order_id text, buyer text, key text, sku text, quantity integer, reserved_ms bigint, pay_by_ms bigint
) ON COMMIT DELETE ROWS;

-- name: record_new_entries
-- Looking for conflicts costs a third of the insert, and there are none but after a crash, or where a payment came before
-- the recorder. So this one is tried first; the next one looks.
WITH recorded AS (
    INSERT INTO orders (
        order_id, sale, bucket, buyer, key, sku, quantity, price_fen, reserved_ms, pay_by_ms, changed_ms
    )
    SELECT order_id, $1, $2, buyer, key, given.sku, quantity, price_fen, reserved_ms, pay_by_ms, reserved_ms
    FROM staged_orders AS given
    LEFT JOIN skus ON skus.sale = $1 AND skus.sku = given.sku
    RETURNING 1
), moved AS (
    INSERT INTO journal_positions AS positions (sale, bucket, entry_id) VALUES ($1, $2, $3)
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
        WITH ORDINALITY AS given (order_id, buyer, key, sku, quantity, reserved_ms, pay_by_ms, number)
    LEFT JOIN skus ON skus.sale = $1 AND skus.sku = given.sku
    ORDER BY number
    ON CONFLICT DO NOTHING
    RETURNING 1
), moved AS (
    INSERT INTO journal_positions AS positions (sale, bucket, entry_id) VALUES ($1, $2, $10)
    ON CONFLICT (sale, bucket) DO UPDATE SET entry_id = EXCLUDED.entry_id
    -- Ids are milliseconds and a sequence number, joined by '-': they have to be compared as numbers.
    WHERE string_to_array(EXCLUDED.entry_id, '-')::bigint[] > string_to_array(positions.entry_id, '-')::bigint[]
)
SELECT count(*) FROM recorded;

-- name: record_conflicts
-- Given the batch once more, after `record_orders` or `record_entries`: what is still not an order, is in conflict.
INSERT INTO order_conflicts (order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms)
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms
FROM unnest(
    $1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[]
) AS given (order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms)
WHERE NOT EXISTS (SELECT FROM orders WHERE orders.order_id = given.order_id)
ON CONFLICT DO NOTHING;

-- name: conflicts
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms
FROM order_conflicts WHERE sale = $1
ORDER BY place DESC
LIMIT $2;

-- name: pay_order
SELECT pay_order($1, $2, $3, $4, $5);

-- name: cancel_order
SELECT cancel_order($1);

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
    AND (sale, bucket) NOT IN (SELECT * FROM unnest($2::text[], $3::integer[]))
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

-- name: search_orders
-- Pages along the primary key.
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, state, price_fen
FROM orders
WHERE order_id > $2 AND sale = $1 AND ($3 = '' OR sku = $3) AND ($4 = '' OR state = $4)
ORDER BY order_id
LIMIT $5;

-- name: search_orders_of_buyer
-- All of a buyer's, which are few, along the index of his keys.
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, state, price_fen
FROM orders
WHERE order_id > $2 AND sale = $1 AND buyer = $6 AND ($3 = '' OR sku = $3) AND ($4 = '' OR state = $4)
ORDER BY order_id
LIMIT $5;

-- name: search_one_order
SELECT order_id, sale, bucket, buyer, key, sku, quantity, reserved_ms, pay_by_ms, state, price_fen
FROM orders
WHERE order_id = $6 AND order_id > $2 AND sale = $1 AND ($3 = '' OR sku = $3) AND ($4 = '' OR state = $4)
LIMIT $5;

-- name: totals
SELECT sku, initial, restocked, coalesce(reserved, 0) AS reserved, coalesce(paid, 0) AS paid,
    coalesce(returning_units, 0) + coalesce(open_units, 0) AS "returning"
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
LEFT JOIN (
    SELECT sku, sum(quantity)::bigint AS open_units
    FROM restocks WHERE sale = $1 AND closed_ms IS NULL
    GROUP BY sku
) AS restocking USING (sku)
WHERE sale = $1
ORDER BY place;

-- name: positions
SELECT bucket, entry_id FROM journal_positions WHERE sale = $1;

-- name: refunds
SELECT payment_id, order_id, sale, buyer, amount_fen, received_ms, seen_ms
FROM payments JOIN orders USING (order_id)
WHERE outcome <> 'accepted' AND payment_id > $2 AND ($1 = '' OR sale = $1)
ORDER BY payment_id
LIMIT $3;

-- name: see_refund
UPDATE payments SET seen_ms = coalesce(seen_ms, now_ms())
WHERE payment_id = $1 AND outcome <> 'accepted'
RETURNING seen_ms;

-- name: add_api_key
INSERT INTO api_keys (key_id, name, role, secret_sha256, created_ms, revoked_ms)
SELECT $1, $2, $3, $4, $5, $6
WHERE (SELECT count(*) FROM api_keys) < $7
ON CONFLICT DO NOTHING;

-- name: api_keys_lock
SELECT pg_advisory_xact_lock(hashtextextended('springtide api keys', 0));

-- name: api_key
SELECT key_id, name, role, secret_sha256, created_ms, revoked_ms FROM api_keys WHERE key_id = $1;

-- name: api_keys
SELECT key_id, name, role, secret_sha256, created_ms, revoked_ms FROM api_keys ORDER BY place;

-- name: revoke_api_key
UPDATE api_keys SET revoked_ms = coalesce(revoked_ms, now_ms()) WHERE key_id = $1 RETURNING key_id;

-- name: token_ring
SELECT oldest, newest FROM token_ring;

-- name: set_token_ring
INSERT INTO token_ring (oldest, newest) VALUES ($1, $2)
ON CONFLICT (single) DO UPDATE SET oldest = EXCLUDED.oldest, newest = EXCLUDED.newest;
