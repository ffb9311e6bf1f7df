-- When an administrator disabled the account; nothing signs in as it, or runs for it, then.
ALTER TABLE users ADD COLUMN disabled_at BIGINT;
-- Why, for other administrators.
ALTER TABLE users ADD COLUMN disabled_note TEXT NOT NULL DEFAULT '';
