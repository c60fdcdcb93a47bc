// Channel: the framed connection to the supervisor on descriptor 3 (see wire.py).
//
// It blocks. Between two invocations nothing of the function runs, as if it were frozen; while one
// runs, nobody reads. Two system calls per event, and the event loop belongs to the function alone.

import fs from "node:fs";

export const INIT = 1;
export const EVENT = 2;
export const INITIALISED = 16;
export const INIT_FAILED = 17;
export const RESULT = 18;
export const ERROR = 19;

export const MAX_RESPONSE_BYTES = 6_291_556;

const CHANNEL_FD = 3;
const FRAME_BYTES = 9; // kind, attempt, length
const USAGE_BYTES = 4;
const EVENT_HEAD_BYTES = 18; // deadline, four lengths
const READ_BYTES = 65_536; // one read for a small event, head and body

const LOST = 1; // exit status when the channel has ended or is no longer what it was

export class Channel {
  #buffer = Buffer.allocUnsafe(READ_BYTES);
  #start = 0;
  #end = 0;

  // The next frame. Its body is valid until the next call.
  receive() {
    this.#fill(FRAME_BYTES);
    const kind = this.#buffer.readUInt8(this.#start);
    const attempt = this.#buffer.readUInt32LE(this.#start + 1);
    const size = FRAME_BYTES + this.#buffer.readUInt32LE(this.#start + 5);
    this.#fill(size);
    const body = this.#buffer.subarray(this.#start + FRAME_BYTES, this.#start + size);
    this.#start += size;
    return { kind, attempt, body };
  }

  send(kind, attempt, text) {
    const length = Buffer.byteLength(text);
    const frame = Buffer.allocUnsafe(FRAME_BYTES + USAGE_BYTES + length);
    frame.writeUInt8(kind, 0);
    frame.writeUInt32LE(attempt, 1);
    frame.writeUInt32LE(USAGE_BYTES + length, 5);
    frame.writeUInt32LE(process.resourceUsage().maxRSS, FRAME_BYTES);
    frame.write(text, FRAME_BYTES + USAGE_BYTES);
    let sent = 0;
    while (sent < frame.length) {
      sent += attempting(() => fs.writeSync(CHANNEL_FD, frame, sent));
    }
  }

  #fill(size) {
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
      if (this.#buffer.length > READ_BYTES) {
        this.#buffer = Buffer.allocUnsafe(READ_BYTES); // a large event's memory is the function's
      }
    }
    if (this.#start + size > this.#buffer.length) {
      const unread = this.#buffer.subarray(this.#start, this.#end);
      const buffer = Buffer.allocUnsafe(Math.max(size, READ_BYTES));
      unread.copy(buffer);
      this.#buffer = buffer;
      this.#start = 0;
      this.#end = unread.length;
    }
    while (this.#end - this.#start < size) {
      const room = this.#buffer.length - this.#end;
      const count = attempting(() => fs.readSync(CHANNEL_FD, this.#buffer, this.#end, room, null));
      if (count === 0) {
        process.exit(LOST);
      }
      this.#end += count;
    }
  }
}

export function parseEvent(body) {
  let start = EVENT_HEAD_BYTES;
  const take = (length) => body.toString("utf8", start, (start += length));
  return {
    deadlineMs: Number(body.readBigUInt64LE(0)),
    requestId: take(body.readUInt16LE(8)),
    arn: take(body.readUInt16LE(10)),
    traceId: take(body.readUInt16LE(12)),
    clientContext: take(body.readUInt32LE(14)),
    payload: take(body.length - start),
  };
}

// The body of an event without an ARN, a trace or a client context.
export function packEvent({ requestId, payload }) {
  const head = Buffer.alloc(EVENT_HEAD_BYTES);
  head.writeUInt16LE(requestId.length, 8);
  return Buffer.concat([head, Buffer.from(requestId + payload)]);
}

function attempting(operation) {
  try {
    return operation();
  } catch {
    process.exit(LOST);
  }
}
