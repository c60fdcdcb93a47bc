// Faults: what went wrong in a function, in the words and the form of AWS's Node runtime.

import { types } from "node:util";

class RuntimeFault extends Error {
  get name() {
    return `Runtime.${this.constructor.name}`;
  }
}

export class HandlerNotFound extends RuntimeFault {}
export class ImportModuleError extends RuntimeFault {}
export class MalformedHandlerName extends RuntimeFault {}
export class UserCodeSyntaxError extends RuntimeFault {}

export class UnhandledPromiseRejection extends RuntimeFault {
  constructor(reason) {
    super(String(reason));
    this.reason = reason;
  }
}

const OWN_FOLDER = new URL(".", import.meta.url).href;

// What the caller gets to know of an error, as JSON.
export function toPayload(error) {
  return JSON.stringify(describe(error));
}

export function toError(thrown) {
  return thrown instanceof Error ? thrown : new Error(thrown);
}

// An error as a tab and JSON, for the log.
export function toLogText(error) {
  try {
    return `\t${JSON.stringify(error, (_key, value) => withEnumerableFields(value))}`;
  } catch {
    return `\t${toPayload(error)}`;
  }
}

function describe(error) {
  try {
    if (types.isNativeError(error) || looksLikeError(error)) {
      return {
        errorType: escaped(error.name),
        errorMessage: escaped(error.message),
        trace: traceOf(escaped(error.stack)),
      };
    }
    return { errorType: typeof error, errorMessage: error.toString(), trace: [] };
  } catch {
    return {
      errorType: "handled",
      errorMessage:
        "callback called with Error argument, but there was a problem while retrieving one or " +
        "more of its message, name, and stack",
    };
  }
}

function looksLikeError(value) {
  return [value?.name, value?.message, value?.stack].every(
    (field) => typeof field === "string" && field !== "",
  );
}

function escaped(text) {
  return text?.replace(/\x7F/g, "%7F");
}

// The frames of these files stand below the user's in every trace.
function traceOf(stack) {
  return stack.split("\n").filter((line) => !line.includes(OWN_FOLDER));
}

function withEnumerableFields(value) {
  if (!(value instanceof Error)) {
    return value;
  }
  const { name: errorType, message: errorMessage, code, stack } = value;
  const fields = Object.assign({ errorType, errorMessage, code }, value);
  if (typeof stack === "string") {
    fields.stack = traceOf(stack);
  }
  return fields;
}
