-- Crashes in a row of a sandbox, so that a restart of the hypervisor goes on counting. The
-- row goes with the next start or stop that somebody orders, or once a start has lived long.
CREATE TABLE sandbox_crashes (
    sandbox_id TEXT PRIMARY KEY NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    crashes BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    -- set once it was given up: what people are told, never what the guest wrote
    failed TEXT,
    hint TEXT
);
