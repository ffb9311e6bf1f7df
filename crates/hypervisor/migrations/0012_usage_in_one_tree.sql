-- Single calls in one tree, in the order in which they began (ids are UUIDs of version 7, in
-- 16 bytes): a call is appended, and no second tree is kept in order.
CREATE TABLE calls_in_order (
    request_id BLOB PRIMARY KEY NOT NULL,
    at BIGINT NOT NULL,
    sandbox_id BLOB NOT NULL,
    user_id BLOB NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    latency_ms BIGINT NOT NULL,
    first_byte_ms BIGINT,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    estimated BOOLEAN NOT NULL,
    cost BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO calls_in_order
SELECT unhex(request_id, '-'), at, unhex(sandbox_id, '-'), unhex(user_id, '-'), provider, model,
       status, outcome, latency_ms, first_byte_ms, input_tokens, output_tokens, cached_tokens,
       estimated, cost
FROM provider_calls;
DROP TABLE provider_calls;
ALTER TABLE calls_in_order RENAME TO provider_calls;
