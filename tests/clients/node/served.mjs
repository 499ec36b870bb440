// What the tests know of the servers: tests/clients/conftest.py passes their URLs.
export const tiny = process.env.TINY_URL;
export const scripted = process.env.SCRIPTED_URL;
export const key = "s3cret";

async function call(path, body) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const url = scripted.replace(/\/v1$/, "") + path;
  const reply = await fetch(url, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  return reply.json();
}

// What the scripted model answers to the next requests, and the prompts since then.
export const script = (...texts) => call("/script", texts);
export const seen = () => call("/seen");

export const hermesCall = (name, args) =>
  `<tool_call>\n{"name": "${name}", "arguments": ${JSON.stringify(args)}}\n</tool_call>`;
