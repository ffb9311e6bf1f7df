/** The guest's wire types. */

export interface Problem {
  type: string;
  title: string;
  status: number;
  code: string;
  detail: string;
  hint?: string | null;
  request_id?: string | null;
}

export type Role = 'live' | 'dev';

export interface Provider {
  name: string;
  kind: 'openai' | 'anthropic';
  models: string[];
  demo?: boolean;
}

export interface Models {
  providers: Provider[];
  default?: { provider: string; model: string } | null;
}

export interface Info {
  user: string;
  role: Role;
  sandbox_id: string;
  generation: number;
  control_origin?: string | null;
  live_origin?: string | null;
  dev_origin?: string | null;
  version: string;
  models?: Models | null;
}

export interface EventRecord {
  seq: number;
  ts: string;
  kind: string;
  run_id?: string | null;
  data: Record<string, unknown>;
}

export type RunStatus = 'running' | 'done' | 'failed' | 'cancelled' | 'bounded';

export interface Run {
  id: string;
  prompt: string;
  status: RunStatus;
  model: string;
  started_at: string;
  ended_at?: string | null;
  steps: number;
  input_tokens: number;
  output_tokens: number;
  answer?: string | null;
  error?: string | null;
}

export interface ExecuteRequest {
  prompt: string;
  model?: string;
  max_steps?: number;
  max_seconds?: number;
  max_tokens?: number;
}

export type EntryType = 'file' | 'dir' | 'symlink' | 'other';

export interface FileEntry {
  name: string;
  type: EntryType;
  size: number;
  modified?: string | null;
}

export interface CommandExit {
  code?: number | null;
  signal?: number | null;
  timed_out?: boolean;
  dropped_bytes?: number;
  wall_ms?: number;
  error?: string | null;
}

export interface CommandView {
  id: string;
  argv: string[];
  label?: string | null;
  terminal: boolean;
  detach: boolean;
  state: 'running' | 'exited';
  exit?: CommandExit | null;
}

export interface Memory {
  id: string | number;
  text: string;
  tags: string[];
  created_at?: string;
}
