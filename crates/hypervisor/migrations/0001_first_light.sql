-- Read by SQLite and by PostgreSQL alike: ids are UUIDs in text, times are Unix
-- milliseconds, hashes are hexadecimal text.

CREATE TABLE users (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    is_admin BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE passkeys (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- base64url without padding, as browsers write it
    credential_id TEXT NOT NULL UNIQUE,
    -- the public credential as JSON
    credential TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX passkeys_by_user ON passkeys (user_id);

CREATE TABLE recovery_codes (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- Argon2id in the PHC string format
    code_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    used_at BIGINT
);
CREATE INDEX recovery_codes_by_user ON recovery_codes (user_id);

CREATE TABLE sessions (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('control', 'recovery', 'runtime')),
    -- the control session that a runtime session was handed over from, and ends with
    parent_id TEXT REFERENCES sessions (id) ON DELETE CASCADE,
    token_hash TEXT NOT NULL UNIQUE,
    -- the only host that may present it
    host TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    address TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_parent ON sessions (parent_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE invites (
    id TEXT PRIMARY KEY NOT NULL,
    token_hash TEXT NOT NULL UNIQUE,
    note TEXT NOT NULL,
    makes_admin BOOLEAN NOT NULL,
    created_by TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_by TEXT REFERENCES users (id) ON DELETE SET NULL,
    used_at BIGINT
);

-- The one-time link that makes the first admin; at most one row.
CREATE TABLE setup_links (
    token_hash TEXT PRIMARY KEY NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE,
    -- separated by single spaces
    scopes TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX api_tokens_by_user ON api_tokens (user_id);

CREATE TABLE pairings (
    id TEXT PRIMARY KEY NOT NULL,
    -- what the command polls with
    device_hash TEXT NOT NULL UNIQUE,
    -- what the person types or finds in the link
    user_code TEXT NOT NULL UNIQUE,
    client_name TEXT NOT NULL,
    address TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    approved_by TEXT REFERENCES users (id) ON DELETE CASCADE,
    scopes TEXT,
    denied BOOLEAN NOT NULL
);
CREATE INDEX pairings_by_expiry ON pairings (expires_at);

CREATE TABLE handover_codes (
    code_hash TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- the runtime host that may redeem it
    host TEXT NOT NULL,
    -- hash of what the browser that asked holds
    binding_hash TEXT NOT NULL,
    return_to TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX handover_codes_by_expiry ON handover_codes (expires_at);

CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- 0 or 1: each user has two; which of them is live stands in routes
    slot BIGINT NOT NULL,
    host_uid BIGINT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    UNIQUE (user_id, slot)
);

CREATE TABLE routes (
    user_id TEXT PRIMARY KEY NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    live_sandbox_id TEXT NOT NULL UNIQUE REFERENCES sandboxes (id),
    dev_sandbox_id TEXT NOT NULL UNIQUE REFERENCES sandboxes (id),
    -- number of swaps so far
    generation BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    CHECK (live_sandbox_id <> dev_sandbox_id)
);

-- Values of the installation itself, such as the key that makes up stand-ins for
-- credentials of accounts that do not exist.
CREATE TABLE installation (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);
