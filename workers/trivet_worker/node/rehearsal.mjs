// Rehearsal: a cell plays the life of an environment while it waits for its function.
//
// Node compiles what is called when it is called first, and so do the module loaders behind
// require() and import(). What the cell has called once, its function does not wait for.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { EVENT, packEvent } from "./channel.mjs";
import { load } from "./handlers.mjs";
import { setRequestId } from "./log.mjs";
import { Runtime } from "./runtime.mjs";

const FOLDER = fileURLToPath(new URL(".", import.meta.url));
const ROUNDS = 2; // the first event takes other ways than the rest
const DESCRIPTION = {
  name: "sample",
  version: "$LATEST",
  memory_mb: 128,
  log_group: "",
  log_stream: "",
};

export async function rehearse() {
  const require = createRequire(import.meta.url);
  const handler = await load(FOLDER, "sample.handler");
  delete require.cache[require.resolve("./sample.js")];
  await import("data:text/javascript,export const handler = null");
  for (let round = 0; round < ROUNDS; round++) {
    await answered(handler);
  }
  setRequestId(undefined);
}

// One event, over a channel that leads nowhere.
function answered(handler) {
  return new Promise((resolve) => {
    const body = packEvent({ requestId: "8f507cfc", payload: JSON.stringify(DESCRIPTION) });
    const channel = { receive: () => ({ kind: EVENT, attempt: 1, body }), send() {} };
    const runtime = new Runtime(channel, handler, DESCRIPTION);
    runtime.scheduleNext();
    runtime.scheduleNext = resolve; // and no other event
  });
}
