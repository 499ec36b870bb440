// The AI SDK with its provider for OpenAI-compatible servers.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { hermesCall, key, script, scripted, seen, tiny } from "./served.mjs";

const at = (baseURL, apiKey = key) =>
  createOpenAICompatible({ name: "ours", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const Weather = z.object({ unit: z.enum(["C", "F"]), sunny: z.boolean() });
const weather = tool({
  description: "Ask",
  inputSchema: z.object({ unit: z.enum(["C", "F"]) }),
  execute: async ({ unit }) => `20 ${unit}`,
});
const say = { prompt: "Hi", maxRetries: 0 };

test("generateText and streamText return the text and its usage", async () => {
  await script("Hello there");
  const model = at(scripted)("tiny");
  const whole = await generateText({ model, system: "Be short", ...say });
  const streamed = streamText({ model, ...say });
  assert.equal(whole.text, "Hello there");
  assert.equal(await streamed.text, "Hello there");
  assert.ok(whole.usage.outputTokens > 2 && (await streamed.usage).outputTokens > 2);
});

test("an object of a zod schema, whole and streamed", async () => {
  const fields = { model: at(tiny)("tiny"), output: Output.object({ schema: Weather }), maxOutputTokens: 100, ...say };
  assert.ok(Weather.parse((await generateText(fields)).output));
  assert.ok(Weather.parse(await streamText(fields).output));
});

for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
  test(`a forced call is executed, whole and streamed: ${JSON.stringify(toolChoice)}`, async () => {
    const providerOptions = { ours: { parallel_tool_calls: false } };
    const model = at(tiny)("tiny");
    const fields = { model, tools: { weather }, toolChoice, providerOptions, maxOutputTokens: 200, ...say };
    assert.match((await generateText(fields)).toolResults[0].output, /^20 [CF]$/);
    assert.match((await streamText(fields).toolResults)[0].output, /^20 [CF]$/);
  });
}

test("an agent's loop: call, result, answer", async () => {
  for (const run of [generateText, streamText]) {
    await script("I look. " + hermesCall("weather", { unit: "C" }), "It is 20 C");
    const result = await run({ model: at(scripted)("tiny"), tools: { weather }, stopWhen: stepCountIs(3), ...say });
    assert.equal(await result.text, "It is 20 C");
    assert.ok((await seen())[1].includes("20 C<eos>"));
  }
});

test("completions, and an error with its status", async () => {
  const model = at(tiny).completionModel("tiny");
  assert.equal((await generateText({ model, maxOutputTokens: 4, ...say })).usage.outputTokens, 4);
  await assert.rejects(generateText({ model: at(tiny)("other"), ...say }), { statusCode: 404 });
  await assert.rejects(generateText({ model: at(tiny, "wrong")("tiny"), ...say }), { statusCode: 401 });
});
