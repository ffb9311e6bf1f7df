/** Short names for the guest's wire types, which `npm run api` generates from its OpenAPI document. */

import type { components } from './schema';

type Schemas = components['schemas'];

export type Problem = Schemas['Problem'];
export type Info = Schemas['Info'];
export type EventPage = Schemas['EventPage'];
/** `run_id` and `data` as this client reads them: the particulars follow from `kind`. */
export type EventRecord = Omit<Schemas['Event'], 'data'> & { data: Record<string, unknown> };
export type Run = Schemas['Run'];
export type RunStatus = Schemas['RunStatus'];
export type Runs = Schemas['Runs'];
export type RunDetail = Omit<Schemas['RunDetail'], 'events'> & { events: EventRecord[] };
export type Started = Schemas['Started'];
export type ExecuteRequest = Schemas['Task'];
export type FileEntry = Schemas['Entry'];
export type Listing = Schemas['Listing'];
export type TerminalView = Schemas['TerminalView'];
export type Terminals = Schemas['Terminals'];
export type NewTerminal = Schemas['NewTerminal'];
export type Opened = Schemas['Opened'];
export type Service = Schemas['ServiceView'];
export type ServicePort = Schemas['ServicePort'];
export type Services = Schemas['Services'];
export type NewService = Schemas['NewService'];
export type Memory = Schemas['Memory'];
export type Memories = Schemas['Memories'];
export type NewMemory = Schemas['NewMemory'];
export type ClientMessage = Schemas['ClientMessage'];
export type ServerMessage = Schemas['ServerMessage'];

/** How a command ended: `CommandExit` of the terminal's last frame, which the document does not describe. */
export type CommandExit = Partial<Schemas['TerminalExit']> & { timed_out?: boolean; dropped_bytes?: number; wall_ms?: number };
