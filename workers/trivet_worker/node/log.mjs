// Log: console lines as AWS's Node runtime writes them, and standard streams that never lag behind.

import fs from "node:fs";
import { Writable } from "node:stream";
import { format } from "node:util";
import { toError, toLogText } from "./faults.mjs";

const STDOUT_FD = 1;
const STDERR_FD = 2;
const RETRY_MS = 1;

// Set per invocation. During initialisation AWS's lines say "undefined" too.
let requestId;

export function setRequestId(id) {
  requestId = id;
}

export function patchConsole() {
  replaceStream("stdout", STDOUT_FD);
  replaceStream("stderr", STDERR_FD);
  for (const level of ["trace", "debug", "info", "warn", "error", "fatal"]) {
    console[level] = (...message) => writeLine(level.toUpperCase(), message);
  }
  console.log = console.info;
}

export function logError(headline, error) {
  console.error(headline, toLogText(toError(error)));
}

function writeLine(level, message) {
  const line = `${new Date().toISOString()}\t${requestId}\t${level}\t${format(...message)}`;
  // Carriage returns hold a message of several lines together.
  process.stdout.write(`${line.replace(/\n/g, "\r")}\n`);
}

function replaceStream(name, descriptor) {
  const stream = new Writable({
    write(chunk, _encoding, done) {
      writeAll(descriptor, chunk);
      done();
    },
  });
  stream.fd = descriptor;
  Object.defineProperty(process, name, { configurable: true, enumerable: true, value: stream });
}

// The whole chunk at once: what was written before a crash is not lost with it.
function writeAll(descriptor, chunk) {
  let written = 0;
  while (written < chunk.length) {
    try {
      written += fs.writeSync(descriptor, chunk, written);
    } catch (error) {
      if (error.code !== "EAGAIN") {
        return; // the function closed it
      }
      // Some child process made the shared pipe non-blocking.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
}
