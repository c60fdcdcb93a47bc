// Runtime: calls the handler for each event and answers, by AWS's rules for Node 20.
//
// A handler answers by a promise, by its callback, by the context's old methods, or by leaving the
// event loop with nothing to do. The first of them counts.

import { ERROR, EVENT, MAX_RESPONSE_BYTES, RESULT, parseEvent } from "./channel.mjs";
import { toPayload } from "./faults.mjs";
import { logError, setRequestId } from "./log.mjs";

const TRACE_VARIABLE = "_X_AMZN_TRACE_ID";
const FAILURE = 1;

const RESPONSE_TOO_LARGE = JSON.stringify({
  errorMessage: `Response payload size exceeded maximum allowed payload size (${MAX_RESPONSE_BYTES} bytes).`,
  errorType: "Function.ResponseSizeTooLarge",
});

// The name and the method call below appear in users' stack traces: "at Runtime.handler (...)".
export class Runtime {
  #channel;
  #description;
  #answer; // of the invocation that runs now
  #onIdle = () => {};

  constructor(channel, handler, description) {
    this.#channel = channel;
    this.handler = handler;
    this.#description = description;
  }

  // Take the next event as soon as what the event loop holds now has run.
  scheduleNext() {
    setImmediate(() => this.#handleOnce());
  }

  // The event loop has nothing left to do.
  onIdle() {
    this.#onIdle();
  }

  // Answer for an error that nobody caught, unless the invocation is over.
  failUnanswered(error) {
    this.#answer?.(ERROR, toPayload(error));
  }

  #handleOnce() {
    const { kind, attempt, body } = this.#channel.receive();
    if (kind !== EVENT) {
      process.exit(FAILURE); // a second INIT above all: the function is what it was started as
    }
    const event = parseEvent(body);
    setRequestId(event.requestId);
    const answer = this.#answerOnce(attempt);
    const { callback, context } = this.#callbacks(answer);
    // What counts if the function never answers.
    this.#onIdle = () => answer(RESULT, "null");
    try {
      setTrace(event.traceId);
      const input = JSON.parse(event.payload);
      const result = this.handler(input, this.#describe(context, event), callback);
      if (typeof result?.then === "function") {
        result.then(context.succeed, context.fail).catch(context.fail);
      }
    } catch (error) {
      callback(error);
    }
  }

  #answerOnce(attempt) {
    let isOpen = true;
    const answer = (kind, text) => {
      if (!isOpen) {
        return;
      }
      isOpen = false;
      this.#answer = undefined;
      this.#onIdle = () => {};
      if (kind === RESULT && Buffer.byteLength(text) > MAX_RESPONSE_BYTES) {
        this.#channel.send(ERROR, attempt, RESPONSE_TOO_LARGE);
      } else {
        this.#channel.send(kind, attempt, text);
      }
      this.scheduleNext();
    };
    this.#answer = answer;
    return answer;
  }

  // The three ways to answer without a promise. Only the first call of each counts.
  #callbacks(answer) {
    const fail = (error) => {
      logError("Invoke Error", error);
      answer(ERROR, toPayload(error));
    };
    const succeed = (result) => {
      let text;
      try {
        text = JSON.stringify(result === undefined ? null : result) ?? "null";
      } catch {
        fail(new Error("Unable to stringify response body"));
        return;
      }
      answer(RESULT, text);
    };
    const finish = (error, result) => (isGiven(error) ? fail(error) : succeed(result));
    const context = {
      callbackWaitsForEmptyEventLoop: true,
      succeed: once((result) => finish(null, result)),
      fail: once((error) => finish(isGiven(error) ? error : "handled")),
      done: once(finish),
    };
    const callback = once((error, result) => {
      if (isGiven(error) || !context.callbackWaitsForEmptyEventLoop) {
        finish(error, result);
      } else {
        this.#onIdle = () => setImmediate(succeed, result);
      }
    });
    return { callback, context };
  }

  #describe(context, event) {
    const { name, version, memory_mb: memory, log_group, log_stream } = this.#description;
    return Object.assign(context, {
      functionVersion: version,
      functionName: name,
      memoryLimitInMB: String(memory),
      logGroupName: log_group,
      logStreamName: log_stream,
      clientContext: parseClientContext(event.clientContext),
      identity: undefined,
      invokedFunctionArn: event.arn,
      awsRequestId: event.requestId,
      tenantId: undefined,
      getRemainingTimeInMillis: () => event.deadlineMs - Date.now(),
    });
  }
}

function setTrace(traceId) {
  if (traceId) {
    process.env[TRACE_VARIABLE] = traceId;
  } else {
    delete process.env[TRACE_VARIABLE];
  }
}

function parseClientContext(text) {
  if (!text) {
    return undefined;
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`Cannot parse ClientContext as json: ${error}`);
  }
}

function isGiven(error) {
  return error !== undefined && error !== null;
}

function once(callback) {
  let isCalled = false;
  return (...values) => {
    if (!isCalled) {
      isCalled = true;
      callback(...values);
    }
  };
}
