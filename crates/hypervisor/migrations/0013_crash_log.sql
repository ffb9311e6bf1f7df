-- The last log lines of a sandbox that was given up: what its owner needs most when they come
-- back, and the hypervisor may have been restarted meanwhile. The guest's own words, at most 20
-- lines; shown to its owner and never logged.
ALTER TABLE sandbox_crashes ADD COLUMN log TEXT;
