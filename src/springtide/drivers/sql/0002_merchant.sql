-- What a merchant keeps (drafts, restocks, refunds he has seen, keys), orders in conflict, and transitions in one call.

ALTER TABLE sales
    ADD COLUMN waiting_room boolean NOT NULL DEFAULT false,
    ADD COLUMN pay_url text NOT NULL DEFAULT '',
    ADD COLUMN stage text NOT NULL DEFAULT 'published' CHECK (stage IN ('draft', 'published', 'closed')),
    ADD COLUMN revision bigint NOT NULL DEFAULT 1,
    ADD COLUMN changed_ms bigint NOT NULL DEFAULT now_ms();

ALTER TABLE skus ADD COLUMN spread boolean NOT NULL DEFAULT false;

-- Open until the units are in stock. They are in skus.restocked from the start.
CREATE TABLE restocks (
    restock_id text PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    sale text NOT NULL,
    sku text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    opened_ms bigint NOT NULL DEFAULT now_ms(),
    closed_ms bigint,
    FOREIGN KEY (sale, sku) REFERENCES skus
);
CREATE INDEX restocks_open ON restocks (place) WHERE closed_ms IS NULL;

ALTER TABLE payments ADD COLUMN seen_ms bigint;
CREATE INDEX payments_to_refund ON payments (payment_id) WHERE outcome <> 'accepted';

CREATE TABLE api_keys (
    key_id text PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('viewer', 'operator', 'owner')),
    secret_sha256 text NOT NULL,
    created_ms bigint NOT NULL,
    revoked_ms bigint
);

CREATE TABLE token_ring (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    oldest bigint NOT NULL,
    newest bigint NOT NULL CHECK (newest >= oldest)
);

-- Orders that were acknowledged although their buyer and key had an order already. They are not sold; a person must look.
CREATE TABLE order_conflicts (
    order_id text PRIMARY KEY,
    place bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    sale text NOT NULL,
    bucket integer NOT NULL,
    buyer text NOT NULL,
    key text NOT NULL,
    sku text NOT NULL,
    quantity integer NOT NULL,
    reserved_ms bigint NOT NULL,
    pay_by_ms bigint NOT NULL,
    found_ms bigint NOT NULL DEFAULT now_ms()
);

-- Functions, so that a transition costs one round trip. Each statement in them sees what was committed before it began:
-- what is looked up behind a lock is what the one before us left.
CREATE FUNCTION pay_order(
    given_payment text, given_order text, given_sale text, given_buyer text, given_fen bigint
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    owed orders;
    result text;
BEGIN
    SELECT * INTO owed FROM orders
    WHERE order_id = given_order AND sale = given_sale AND buyer = given_buyer
    FOR UPDATE;
    -- The same payment said twice at once finds its first outcome here.
    SELECT outcome INTO result FROM payments WHERE payment_id = given_payment;
    IF result IS NOT NULL THEN
        RETURN result;
    ELSIF owed.order_id IS NULL THEN
        RETURN 'unknown_order';
    END IF;
    result := CASE
        WHEN owed.price_fen * owed.quantity <> given_fen THEN 'amount_differs'
        WHEN owed.state = 'reserved' THEN 'accepted'
        ELSE 'refund_due'
    END;
    INSERT INTO payments (payment_id, order_id, amount_fen, outcome, received_ms)
    VALUES (given_payment, given_order, given_fen, result, now_ms())
    ON CONFLICT (payment_id) DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'payment % names two orders at once', given_payment USING ERRCODE = 'serialization_failure';
    END IF;
    IF result = 'accepted' THEN
        UPDATE orders SET state = 'paid', changed_ms = now_ms() WHERE order_id = given_order;
    END IF;
    RETURN result;
END $$;

CREATE FUNCTION cancel_order(given_order text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    WITH cancelled AS (
        UPDATE orders SET state = 'cancelled', changed_ms = now_ms()
        WHERE order_id = given_order AND state = 'reserved'
        RETURNING order_id, changed_ms
    )
    INSERT INTO stock_returns (order_id, opened_ms) SELECT order_id, changed_ms FROM cancelled;
    RETURN (SELECT state FROM orders WHERE order_id = given_order);
END $$;
