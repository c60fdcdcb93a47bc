// The entry: makes one attempt, and says what came of it.

import * as hostile from "./hostile.mjs";
import * as harmless from "./harmless.mjs";

const CODES = { EPERM: 1, ENOENT: 2, ESRCH: 3, EACCES: 13, EROFS: 30 };

export async function handler(event) {
  try {
    const loot = await hostile[event.attack](event.arguments);
    return { escaped: true, errno: 0, message: String(loot).slice(0, 500) };
  } catch (error) {
    // An attack that is broken itself must not pass for a jail.
    if (error instanceof TypeError || error instanceof ReferenceError) throw error;
    return { escaped: false, errno: CODES[error.code] ?? 0, message: String(error.message) };
  }
}

export async function call(event) {
  return harmless[event.attack](event.arguments);
}
