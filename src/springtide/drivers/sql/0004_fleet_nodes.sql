-- Nodes that an operator has cordoned (kind 'node', by node id), and the plans of events that he has applied (kind 'plan').
ALTER TABLE fleet_wishes DROP CONSTRAINT fleet_wishes_kind_check;
ALTER TABLE fleet_wishes ADD CONSTRAINT fleet_wishes_kind_check
    CHECK (kind IN ('version', 'service', 'mode', 'scale', 'node', 'plan'));
