-- The last swap of each user, and whether its new `live` is still on trial: an automatic
-- rollback has to survive a restart of the hypervisor (arch §4).
CREATE TABLE swaps (
    user_id TEXT PRIMARY KEY NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- the generation that it made; on trial only while the route still has it
    generation BIGINT NOT NULL,
    swapped_at BIGINT NOT NULL,
    -- end of the trial; absent without automatic rollback
    grace_until BIGINT,
    outcome TEXT NOT NULL CHECK (outcome IN ('on_trial', 'kept', 'rolled_back', 'stayed')),
    -- a sentence for people
    reason TEXT
);
