// What a user of a client in JavaScript would write, as client_programs.py has it for Python.
//
//     node client_programs.mjs openai URL KEY MODEL QUESTION JSON_QUESTION > said.json
//
// It lies beside the node_modules that it imports from.
import OpenAI from "openai";

const [client, url, key, model, question, jsonQuestion] = process.argv.slice(2);
const messages = (content) => [{ role: "user", content }];

async function withOpenai() {
  const openai = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
  const whole = await openai.chat.completions.create({ model, messages: messages(question) });
  let streamed = "";
  for await (const chunk of await openai.chat.completions.create({ model, messages: messages(question), stream: true })) {
    streamed += chunk.choices[0]?.delta.content ?? "";
  }
  const runner = openai.chat.completions.stream({ model, messages: messages(question) });
  const collected = await runner.finalContent();
  const schema = {
    type: "object",
    properties: { sum: { type: "integer" }, sure: { type: "boolean" } },
    required: ["sum", "sure"],
    additionalProperties: false,
  };
  const parsed = await openai.chat.completions.parse({
    model,
    messages: messages(jsonQuestion),
    response_format: { type: "json_schema", json_schema: { name: "sum", strict: true, schema } },
  });
  const text = await openai.completions.create({ model, prompt: "Once", max_tokens: 3 });
  return {
    whole: whole.choices[0].message.content,
    streamed,
    collected,
    parsed: parsed.choices[0].message.parsed,
    model: (await openai.models.retrieve(model)).id,
    "tokens of a text": text.usage.completion_tokens,
  };
}

console.log(JSON.stringify(await { openai: withOpenai }[client]()));
