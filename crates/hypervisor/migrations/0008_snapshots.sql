-- Generations of sandboxes' files (arch §4). What is on the disk beneath a sandbox's
-- `snapshots` directory is held against these rows at every start.
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY NOT NULL,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    -- making: being copied; replacing: holds the copy until it is exchanged for the sandbox's
    -- state, and that state from then on; ready: complete; removing: on its way out
    standing TEXT NOT NULL CHECK (standing IN ('making', 'replacing', 'ready', 'removing')),
    name TEXT,
    reason TEXT NOT NULL CHECK (reason IN ('manual', 'before_restore', 'before_clone')),
    known_good BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    files BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    version TEXT NOT NULL,
    -- while replacing: the inode of the state that is to be put aside, which tells after a
    -- crash whether it was, and whether the sandbox ran
    replaces BIGINT,
    was_running BOOLEAN NOT NULL
);
CREATE INDEX snapshots_by_sandbox ON snapshots (sandbox_id);
