-- The EventStore (arch §7): append-only, ordered by seq, the single source of truth.
CREATE TABLE events (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    ts     TEXT NOT NULL,
    kind   TEXT NOT NULL,
    run_id TEXT,
    data   TEXT NOT NULL CHECK (json_valid(data))
) STRICT;

CREATE INDEX events_by_run ON events (run_id, seq) WHERE run_id IS NOT NULL;
CREATE INDEX events_by_kind ON events (kind, seq);

CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

CREATE TRIGGER events_never_go BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- INSERT OR REPLACE would delete without firing the trigger above.
CREATE TRIGGER events_never_replaced BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- What the run events add up to; written in the same transaction as they are.
CREATE TABLE runs (
    id            TEXT PRIMARY KEY,
    started_seq   INTEGER NOT NULL UNIQUE,
    prompt        TEXT NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'cancelled', 'bounded')),
    model         TEXT NOT NULL,
    started_at    TEXT NOT NULL,
    ended_at      TEXT,
    steps         INTEGER NOT NULL DEFAULT 0,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    answer        TEXT,
    error         TEXT
) STRICT;

CREATE INDEX runs_running ON runs (status) WHERE status = 'running';

CREATE TABLE memories (
    rowid      INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    text       TEXT NOT NULL,
    -- A JSON array of lower-case words.
    tags       TEXT NOT NULL CHECK (json_valid(tags)),
    -- Milliseconds since the epoch.
    created_ms INTEGER NOT NULL
) STRICT;

CREATE VIRTUAL TABLE memories_text USING fts5 (
    text, tags, content = 'memories', content_rowid = 'rowid',
    tokenize = 'porter unicode61 remove_diacritics 2'
);

-- 'secure-delete' makes "forget" take the words out of the index, not only mark them.
INSERT INTO memories_text (memories_text, rank) VALUES ('secure-delete', 1);

CREATE TRIGGER memories_added AFTER INSERT ON memories
BEGIN
    INSERT INTO memories_text (rowid, text, tags) VALUES (NEW.rowid, NEW.text, NEW.tags);
END;

CREATE TRIGGER memories_removed AFTER DELETE ON memories
BEGIN
    INSERT INTO memories_text (memories_text, rowid, text, tags)
    VALUES ('delete', OLD.rowid, OLD.text, OLD.tags);
END;
