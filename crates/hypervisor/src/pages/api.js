// Calls of the control plane, and the translation between its JSON and the browser's
// credentials API.

/** A problem document (RFC 9457) as an error. */
export class Problem extends Error {
  constructor(document, status) {
    super(document.detail ?? `the server answered ${status}`);
    this.status = status;
    this.code = document.code;
    this.hint = document.hint;
    this.requestId = document.request_id;
  }
}

async function request(method, path, body) {
  const headers = { accept: 'application/json' };
  if (body !== undefined) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error('the server did not answer');
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  if (response.status === 429) {
    const seconds = Number(response.headers.get('retry-after') ?? 60);
    document.hint = `Try again in ${seconds} seconds.`;
  }
  throw new Problem(document, response.status);
}

async function json(method, path, body) {
  const response = await request(method, path, body);
  return response.status === 204 ? null : response.json();
}

export const get = (path) => json('GET', path);
export const post = (path, body = {}) => json('POST', path, body);
export const patch = (path, body) => json('PATCH', path, body);
export const remove = (path) => json('DELETE', path);
/** Posts, and follows an answer of one JSON document a line to its end (`CopyUpdate`). */
export async function postAndFollow(path, body, progress) {
  const { body: stream } = await request('POST', path, body);
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? '')).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      const update = JSON.parse(line);
      if (update.event === 'done') return update;
      if (update.event === 'failed') throw new Problem(update, update.status);
      progress(update);
    }
    if (done) throw withHint('the connection ended early', 'The copying goes on; look again in a moment.');
  }
}

export const text = async (path) => (await request('GET', path)).text();

/** Gives the pieces of an answer without end to `add` as they come, until it ends or is given up. */
export async function pieces(path, add, signal) {
  const response = await fetch(path, { signal });
  if (!response.ok) throw new Problem(await response.json().catch(() => ({})), response.status);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    add(value);
  }
}

export const passkeysWork = () => Boolean(window.PublicKeyCredential && navigator.credentials);

function bytes(base64url) {
  const base64 = base64url.replaceAll('-', '+').replaceAll('_', '/');
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function base64url(buffer) {
  const text = String.fromCharCode(...new Uint8Array(buffer));
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

/** The browser's own words for a ceremony that did not work, in ours. */
function ceremonyError(error) {
  switch (error.name) {
    case 'NotAllowedError':
    case 'AbortError':
      return withHint('the passkey was not used', 'It was cancelled, or took too long. Try again.');
    case 'InvalidStateError':
      return withHint('this device already holds a passkey of this account', 'Use it, or take another device.');
    case 'NotSupportedError':
      return withHint('this device cannot make a passkey for ChoirOS', 'Try another device or a security key.');
    case 'SecurityError':
      return withHint('the browser does not allow passkeys here', 'Open the control plane under its own address.');
    default:
      return withHint('the browser could not use the passkey', error.message);
  }
}

function withHint(message, hint) {
  const error = new Error(message);
  error.hint = hint;
  return error;
}

/** Makes a passkey. Takes the server's options, returns what it wants back. */
export async function create({ publicKey }) {
  const options = {
    ...publicKey,
    challenge: bytes(publicKey.challenge),
    user: { ...publicKey.user, id: bytes(publicKey.user.id) },
    excludeCredentials: (publicKey.excludeCredentials ?? []).map((one) => ({ ...one, id: bytes(one.id) })),
  };
  let credential;
  try {
    credential = await navigator.credentials.create({ publicKey: options });
  } catch (error) {
    throw ceremonyError(error);
  }
  const { response } = credential;
  return {
    id: credential.id,
    rawId: base64url(credential.rawId),
    type: credential.type,
    extensions: {},
    response: {
      attestationObject: base64url(response.attestationObject),
      clientDataJSON: base64url(response.clientDataJSON),
      transports: response.getTransports?.() ?? [],
    },
  };
}

/** Uses a passkey. */
export async function use({ publicKey }) {
  const options = {
    ...publicKey,
    challenge: bytes(publicKey.challenge),
    allowCredentials: (publicKey.allowCredentials ?? []).map((one) => ({ ...one, id: bytes(one.id) })),
  };
  let credential;
  try {
    credential = await navigator.credentials.get({ publicKey: options });
  } catch (error) {
    throw ceremonyError(error);
  }
  const { response } = credential;
  return {
    id: credential.id,
    rawId: base64url(credential.rawId),
    type: credential.type,
    extensions: {},
    response: {
      authenticatorData: base64url(response.authenticatorData),
      clientDataJSON: base64url(response.clientDataJSON),
      signature: base64url(response.signature),
      userHandle: response.userHandle ? base64url(response.userHandle) : null,
    },
  };
}

/** A name for a passkey that this browser makes. */
export function deviceName() {
  const system = navigator.userAgentData?.platform ?? navigator.platform ?? '';
  return system ? `This ${system} device`.slice(0, 60) : 'Passkey';
}

/** Where to go after signing in: a path of this origin, and nothing else. */
export function nextPath() {
  const next = new URLSearchParams(location.search).get('next') ?? '/';
  return /^\/(?![/\\])[^\\]*$/.test(next) ? next : '/';
}
