-- Rules of the network allowlist that admins added; the configuration has its own.
CREATE TABLE network_rules (
    id TEXT PRIMARY KEY NOT NULL,
    -- in its one spelling
    rule TEXT NOT NULL UNIQUE,
    -- what it is for, for people
    note TEXT NOT NULL,
    created_by TEXT REFERENCES users (id) ON DELETE SET NULL,
    created_at BIGINT NOT NULL
);
