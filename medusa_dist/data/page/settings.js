// The settings as fields of a request.

import { byId } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];

export class SettingsError extends Error {}

function json(id, what) {
  const text = byId(id).value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingsError(`${what} is not valid JSON: ${error.message}`);
  }
}

/** The fields that are set. Throws a SettingsError that names the box. */
export function fields() {
  const body = {};
  for (const name of NUMBERS) {
    const { value, validity } = byId(name);
    if (validity.badInput) throw new SettingsError(`${name} is not a number`);
    if (value !== "") body[name] = Number(value);
  }
  // So that an answer can be repeated with and without drafts.
  body.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  if (byId("stop-text").value) body.stop = [byId("stop-text").value];
  if (!byId("drafts").checked) body.speculation = "off";
  const schema = json("schema", "The JSON schema");
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  const tools = byId("tools-label").hidden ? null : json("tools", "The list of tools");
  if (tools) body.tools = tools;
  return body;
}

/** The messages before the conversation. */
export function opening() {
  const content = byId("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}
