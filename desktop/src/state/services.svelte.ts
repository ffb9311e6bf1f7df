import { apiUrl, asApiError, getJson, sendJson, type ApiError } from '../api/client';
import type { NewService, Opened, Service, ServicePort, Services as ServicePage } from '../api/types';
import { lookWhileAttended } from '../lib/attention';
import { socketUrl } from '../lib/paths';

/** How often the list is asked for while it is in sight; services change without an event. */
const REFRESH_MS = 3000;
/** Characters of a service's output that the page keeps. */
const KEPT = 200_000;

/** What one service writes, as long as somebody looks. */
export class Output {
  text = $state('');
  link = $state<'connecting' | 'attached' | 'lost' | 'ended'>('connecting');
  #socket: WebSocket;
  #decoder = new TextDecoder();

  constructor(readonly id: string) {
    this.#socket = new WebSocket(socketUrl(apiUrl('.'), `ws/terminal/${encodeURIComponent(id)}?from=0`));
    this.#socket.binaryType = 'arraybuffer';
    this.#socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      this.link = 'attached';
      if (typeof data !== 'string') this.text = (this.text + this.#decoder.decode(data, { stream: true })).slice(-KEPT);
      else if (data.includes('"exited"')) this.link = 'ended';
    };
    this.#socket.onclose = () => {
      if (this.link !== 'ended') this.link = 'lost';
    };
  }

  close(): void {
    this.#socket.onclose = null;
    this.#socket.close();
  }
}

class Services {
  list = $state.raw<Service[]>([]);
  ports = $state.raw<ServicePort[]>([]);
  noPreview = $state<string | null>(null);
  loaded = $state(false);
  error = $state.raw<ApiError | null>(null);
  output = $state.raw<Output | null>(null);
  #latest = 0;

  /** Asks again and again, as long as somebody is there, until it is told to stop. */
  watch(): () => void {
    void this.refresh();
    return lookWhileAttended(() => void this.refresh(), REFRESH_MS);
  }

  async refresh(): Promise<void> {
    const mine = ++this.#latest;
    try {
      const page = await getJson<ServicePage>('api/services');
      // An answer to an older question does not overwrite a newer one.
      if (mine !== this.#latest) return;
      this.list = page.services;
      this.ports = page.ports;
      this.noPreview = page.no_preview ?? null;
      this.error = null;
    } catch (error) {
      if (mine === this.#latest) this.error = asApiError(error);
    } finally {
      this.loaded = true;
    }
  }

  portsOf(service: Service): ServicePort[] {
    return this.ports.filter((port) => port.command_id === service.id);
  }

  async start(service: NewService): Promise<void> {
    const { id } = await sendJson<Opened>('POST', 'api/services', service);
    await this.refresh();
    this.follow(id);
  }

  async stop(service: Service): Promise<void> {
    await sendJson('POST', `api/services/${encodeURIComponent(service.id)}/stop`, {});
    await this.refresh();
  }

  async kill(service: Service): Promise<void> {
    await sendJson('DELETE', `api/services/${encodeURIComponent(service.id)}`);
    await this.refresh();
  }

  follow(id: string | null): void {
    this.output?.close();
    this.output = id === null ? null : new Output(id);
  }
}

export const services = new Services();
