// Bootstrap: the Node side of an execution environment, from INIT to the last event.
//
// The process boots without knowing its function (a cell) and waits. What comes from the
// supervisor is trusted; whatever the function breaks ends this process and nothing else.

import { createRequire } from "node:module";
import { Channel, INIT, INIT_FAILED, INITIALISED } from "./channel.mjs";
import { UnhandledPromiseRejection, toPayload } from "./faults.mjs";
import { load } from "./handlers.mjs";
import { logError, patchConsole } from "./log.mjs";
import { rehearse } from "./rehearsal.mjs";
import { Runtime } from "./runtime.mjs";

// The statuses with which AWS's runtime ends after an error that nobody caught.
const UNHANDLED_REJECTION = 128;
const UNCAUGHT_EXCEPTION = 129;
const FAILURE = 1;

patchConsole();
await rehearse();

const channel = new Channel();
const first = channel.receive();
if (first.kind !== INIT) {
  process.exit(FAILURE);
}
const order = JSON.parse(first.body.toString());
takeOver(order);

// Who answers for an error that nobody caught: initialisation first, then each invocation.
let fail = (error) => channel.send(INIT_FAILED, first.attempt, toPayload(error));

process.on("uncaughtException", (error) => {
  logError("Uncaught Exception", error);
  fail(error);
  process.exit(UNCAUGHT_EXCEPTION);
});
process.on("unhandledRejection", (reason) => {
  const error = new UnhandledPromiseRejection(reason);
  logError("Unhandled Promise Rejection", error);
  fail(error);
  process.exit(UNHANDLED_REJECTION);
});

const handler = await load(order.task_root, order.handler);
const runtime = new Runtime(channel, handler, order.function);
process.on("beforeExit", () => runtime.onIdle());
fail = (error) => runtime.failUnanswered(error);
channel.send(INITIALISED, first.attempt, "");
runtime.scheduleNext();

function takeOver({ environment, task_root: taskRoot }) {
  for (const name of Object.keys(process.env)) {
    delete process.env[name];
  }
  Object.assign(process.env, environment);
  // The code came after this process: its old working directory lies below the new mount.
  process.chdir(taskRoot);
  if (environment.NODE_PATH) {
    createRequire(import.meta.url)("node:module").Module._initPaths(); // reads NODE_PATH again
  }
}
