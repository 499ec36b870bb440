// Calls of the service's public routes: JSON, streams, the API key. The key stays in this tab (sessionStorage).

const KEY = "medusa_dist.key";

export class ApiError extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key.trim());
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function failure(reply) {
  let error = {};
  try {
    error = (await reply.json()).error ?? {};
  } catch {
    // not JSON: a proxy's own page
  }
  return new ApiError(reply.status, error.message ?? `the service answered ${reply.status}`, error.param);
}

export async function getJson(url, signal) {
  const reply = await fetch(url, { headers: headers(), signal, cache: "no-store", credentials: "omit" });
  if (!reply.ok) throw await failure(reply);
  return reply.json();
}

/** The chunks of a streamed chat completion. Ends with an ApiError if the stream does. */
export async function* chatChunks(base, body, signal) {
  const reply = await fetch(new URL("v1/chat/completions", base), {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
    credentials: "omit",
  });
  if (!reply.ok) throw await failure(reply);
  const reader = reply.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new ApiError(0, chunk.error.message, chunk.error.param);
      yield chunk;
    }
    if (done) throw new ApiError(0, "the connection ended before the answer did");
  }
}

/** Where models are served here: the base URL and card of each. The page's own application comes first. */
export async function findModels(start) {
  const bases = [start];
  try {
    // Ray Serve's list of applications by prefix; without it there is one.
    const routes = await getJson(new URL("/-/routes", start));
    for (const prefix of Object.keys(routes)) {
      const base = new URL(prefix.endsWith("/") ? prefix : `${prefix}/`, start).href;
      if (!bases.includes(base)) bases.push(base);
    }
  } catch {
    // not behind Ray Serve
  }
  const found = [];
  for (const base of bases) {
    try {
      const { data } = await getJson(new URL("v1/models", base));
      found.push(...data.map((card) => ({ base, card })));
    } catch (error) {
      if (base === start) throw error; // others may be of another kind
    }
  }
  return found;
}
