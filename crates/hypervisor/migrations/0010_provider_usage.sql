-- Model calls, one by one for a while and by day for good. Nothing here refers to users or
-- sandboxes by a foreign key: what was spent outlives who spent it. Models and providers are
-- names of the configuration, money is in billionths of a US dollar.

CREATE TABLE provider_calls (
    request_id TEXT PRIMARY KEY NOT NULL,
    at BIGINT NOT NULL,
    sandbox_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
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
);
CREATE INDEX provider_calls_by_time ON provider_calls (at);

CREATE TABLE provider_days (
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
    PRIMARY KEY (day, user_id, sandbox_id, provider, model)
);
