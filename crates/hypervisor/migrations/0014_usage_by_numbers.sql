-- Single calls as numbers alone: whose call it was and of which model is what the sums of its
-- day stand for already, and is not written once more with each call. Nothing refers to them by
-- a foreign key, which would be looked up for each call: a call is written together with its
-- day's sums, and those stay for good.
CREATE TABLE days_with_ids (
    id INTEGER PRIMARY KEY,
    -- days since 1970-01-01, UTC
    day BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    calls BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    UNIQUE (day, user_id, sandbox_id, provider, model)
);
INSERT INTO days_with_ids (day, user_id, sandbox_id, provider, model, calls, failures,
                           input_tokens, output_tokens, cached_tokens, cost)
SELECT day, user_id, sandbox_id, provider, model, calls, failures,
       input_tokens, output_tokens, cached_tokens, cost
FROM provider_days;
DROP TABLE provider_days;
ALTER TABLE days_with_ids RENAME TO provider_days;

CREATE TABLE provider_outcomes (
    id INTEGER PRIMARY KEY,
    outcome TEXT UNIQUE NOT NULL
);
INSERT INTO provider_outcomes (outcome) SELECT DISTINCT outcome FROM provider_calls;

CREATE TABLE provider_call_records (
    -- the halves of a UUID of version 7
    id_high BIGINT NOT NULL,
    id_low BIGINT NOT NULL,
    day_id BIGINT NOT NULL,
    outcome_id BIGINT NOT NULL,
    at BIGINT NOT NULL,
    status BIGINT NOT NULL,
    latency_ms BIGINT NOT NULL,
    first_byte_ms BIGINT,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    estimated BOOLEAN NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (id_high, id_low)
) WITHOUT ROWID;

-- As JSON5 a number may be in base 16.
CREATE TEMP VIEW calls_by_numbers AS
SELECT ('0x' || substr(hex(request_id), 1, 8) ->> '$') << 32
           | ('0x' || substr(hex(request_id), 9, 8) ->> '$') AS id_high,
       ('0x' || substr(hex(request_id), 17, 8) ->> '$') << 32
           | ('0x' || substr(hex(request_id), 25, 8) ->> '$') AS id_low,
       lower(substr(hex(user_id), 1, 8) || '-' || substr(hex(user_id), 9, 4) || '-'
           || substr(hex(user_id), 13, 4) || '-' || substr(hex(user_id), 17, 4) || '-'
           || substr(hex(user_id), 21)) AS user,
       lower(substr(hex(sandbox_id), 1, 8) || '-' || substr(hex(sandbox_id), 9, 4) || '-'
           || substr(hex(sandbox_id), 13, 4) || '-' || substr(hex(sandbox_id), 17, 4) || '-'
           || substr(hex(sandbox_id), 21)) AS sandbox,
       at / 86400000 AS on_day,
       provider_calls.*
FROM provider_calls;

-- Each has its day; should one have none, it is not to be lost for that.
INSERT OR IGNORE INTO provider_days (day, user_id, sandbox_id, provider, model, calls, failures,
                                     input_tokens, output_tokens, cached_tokens, cost)
SELECT DISTINCT on_day, user, sandbox, provider, model, 0, 0, 0, 0, 0, 0 FROM calls_by_numbers;
INSERT INTO provider_call_records
SELECT old.id_high, old.id_low, days.id, outcomes.id, old.at, old.status, old.latency_ms,
       old.first_byte_ms, old.input_tokens, old.output_tokens, old.cached_tokens, old.estimated,
       old.cost
FROM calls_by_numbers AS old
JOIN provider_days AS days
  ON days.day = old.on_day AND days.user_id = old.user AND days.sandbox_id = old.sandbox
 AND days.provider = old.provider AND days.model = old.model
JOIN provider_outcomes AS outcomes ON outcomes.outcome = old.outcome;
DROP VIEW calls_by_numbers;
DROP TABLE provider_calls;

-- For whoever reads them: each call whole, its ids as they stand in the log.
CREATE VIEW provider_calls AS
SELECT printf('%08x-%04x-%04x-%04x-%012x', id_high >> 32 & 4294967295, id_high >> 16 & 65535,
              id_high & 65535, id_low >> 48 & 65535, id_low & 281474976710655) AS request_id,
       at, sandbox_id, user_id, provider, model, status, outcome, latency_ms, first_byte_ms,
       records.input_tokens, records.output_tokens, records.cached_tokens, estimated,
       records.cost
FROM provider_call_records AS records
JOIN provider_days AS days ON days.id = day_id
JOIN provider_outcomes AS outcomes ON outcomes.id = outcome_id;
