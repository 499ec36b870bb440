// The `openai` package.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { hermesCall, key, script, scripted, seen, tiny } from "./served.mjs";

const at = (baseURL, apiKey = key) => new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const client = at(tiny);
const Weather = z.object({ unit: z.enum(["C", "F"]), sunny: z.boolean() });
const ask = { model: "tiny", messages: [{ role: "user", content: "Hi" }] };
const parameters = {
  type: "object",
  properties: { unit: { enum: ["C", "F"] } },
  required: ["unit"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];

test("chat returns text, usage and logprobs", async () => {
  const reply = await client.chat.completions.create({ ...ask, max_tokens: 6, logprobs: true, top_logprobs: 2 });
  assert.ok(reply.choices[0].message.content);
  assert.equal(reply.choices[0].logprobs.content[0].top_logprobs.length, 2);
  assert.ok(reply.usage.completion_tokens <= 6);
});

test("a stream is the text, with usage at its end", async () => {
  await script("Hello there");
  const stream = await at(scripted).chat.completions.create({
    ...ask,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "Hello there");
  assert.ok(usage.completion_tokens > 2);
});

test("parse returns what the zod schema describes", async () => {
  const response_format = zodResponseFormat(Weather, "weather");
  const reply = await client.chat.completions.parse({ ...ask, max_tokens: 100, response_format });
  assert.ok(Weather.parse(reply.choices[0].message.parsed));
});

for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
  test(`a forced call fits its schema, whole and streamed: ${JSON.stringify(tool_choice)}`, async () => {
    const fields = { ...ask, tools, tool_choice, parallel_tool_calls: false, max_tokens: 100 };
    const reply = await client.chat.completions.create(fields);
    const streamed = await client.chat.completions.stream(fields).finalChatCompletion();
    for (const { message, finish_reason } of [reply.choices[0], streamed.choices[0]]) {
      assert.equal(finish_reason, "tool_calls");
      assert.match(JSON.parse(message.tool_calls[0].function.arguments).unit, /^[CF]$/);
    }
  });
}

test("runTools calls the function and gives its result to the model", async () => {
  await script(hermesCall("weather", { unit: "C" }), "It is 20 C");
  const run = { ...tools[0].function, function: ({ unit }) => `20 ${unit}`, parse: JSON.parse };
  const runner = at(scripted).chat.completions.runTools({ ...ask, tools: [{ type: "function", function: run }] });
  assert.equal(await runner.finalContent(), "It is 20 C");
  assert.ok((await seen())[1].includes("<s>tool\n20 C<eos>"));
});

test("responses: create, stream and parse", async () => {
  await script("Hello there");
  const reply = await at(scripted).responses.create({ model: "tiny", input: "Hi" });
  const streamed = await at(scripted).responses.stream({ model: "tiny", input: "Hi" }).finalResponse();
  assert.deepEqual([reply.output_text, streamed.output_text], ["Hello there", "Hello there"]);
  const text = { format: zodTextFormat(Weather, "weather") };
  const parsed = await client.responses.parse({ model: "tiny", input: "Hi", text });
  assert.ok(Weather.parse(parsed.output_parsed));
});

test("errors are the client's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ ...ask, model: "other" }), OpenAI.NotFoundError);
  await assert.rejects(at(tiny, "wrong").models.list(), OpenAI.AuthenticationError);
  await assert.rejects(client.embeddings.create({ model: "tiny", input: "a" }), OpenAI.NotFoundError);
});
