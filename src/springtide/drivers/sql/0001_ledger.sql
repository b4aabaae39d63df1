-- The ledger: sales, orders, payments, the outbox of stock returns, and how far each journal has been recorded.
-- Moments are Unix milliseconds (UTC), money is fen, quantities are units.

CREATE TABLE sales (
    sale text PRIMARY KEY,
    title text NOT NULL,
    opens_ms bigint NOT NULL,
    closes_ms bigint NOT NULL,
    hold_ms bigint NOT NULL,
    epoch bigint NOT NULL,
    buckets integer NOT NULL CHECK (buckets > 0)
);

CREATE TABLE skus (
    sale text NOT NULL REFERENCES sales,
    sku text NOT NULL,
    place integer NOT NULL,
    title text NOT NULL,
    price_fen bigint NOT NULL CHECK (price_fen >= 0),
    initial bigint NOT NULL CHECK (initial >= 0),
    restocked bigint NOT NULL DEFAULT 0 CHECK (restocked >= 0),
    per_buyer_max integer NOT NULL CHECK (per_buyer_max > 0),
    PRIMARY KEY (sale, sku)
);

-- The same edges as the state table of the product; the trigger below lets nothing else happen, whoever writes.
CREATE TABLE order_transitions (
    state text NOT NULL,
    next_state text NOT NULL,
    PRIMARY KEY (state, next_state)
);
INSERT INTO order_transitions (state, next_state) VALUES
    ('reserved', 'paid'),
    ('reserved', 'cancelled'),
    ('reserved', 'expired');

-- No foreign key to skus: its check would run row by row on the busiest insert of all. The price, which is copied from
-- skus and may not be null, refuses orders of an unknown sale or SKU just as well.
CREATE TABLE orders (
    order_id text PRIMARY KEY,
    sale text NOT NULL,
    bucket integer NOT NULL,
    buyer text NOT NULL,
    key text NOT NULL,
    sku text NOT NULL,
    quantity integer NOT NULL CHECK (quantity > 0),
    price_fen bigint NOT NULL,
    state text NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'paid', 'cancelled', 'expired')),
    reserved_ms bigint NOT NULL,
    pay_by_ms bigint NOT NULL,
    changed_ms bigint NOT NULL,
    UNIQUE (sale, buyer, key)
);
CREATE INDEX orders_due ON orders (pay_by_ms) WHERE state = 'reserved';

CREATE FUNCTION refuse_order_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM order_transitions t WHERE t.state = OLD.state AND t.next_state = NEW.state) THEN
        RAISE EXCEPTION 'order % is %: it cannot become %', OLD.order_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER order_transition BEFORE UPDATE OF state ON orders
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION refuse_order_transition();

CREATE TABLE payments (
    payment_id text PRIMARY KEY,
    order_id text NOT NULL REFERENCES orders,
    amount_fen bigint NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('accepted', 'refund_due', 'amount_differs')),
    received_ms bigint NOT NULL
);
-- An order is paid once, whatever happens.
CREATE UNIQUE INDEX payments_accepted ON payments (order_id) WHERE outcome = 'accepted';

-- The outbox: written with the transition that frees the stock, closed when the inventory has it back.
CREATE TABLE stock_returns (
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id text NOT NULL UNIQUE REFERENCES orders,
    opened_ms bigint NOT NULL,
    closed_ms bigint
);
CREATE INDEX stock_returns_open ON stock_returns (place) WHERE closed_ms IS NULL;

CREATE TABLE journal_positions (
    sale text NOT NULL,
    bucket integer NOT NULL,
    entry_id text NOT NULL,
    PRIMARY KEY (sale, bucket)
);

CREATE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;
