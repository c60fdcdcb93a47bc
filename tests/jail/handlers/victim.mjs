// The neighbour: an ordinary function that keeps secrets, for others to look for.

import fs from "node:fs";
import net from "node:net";

let server;

export async function handler(event) {
  server ??= net.createServer();
  await new Promise((resolve) => {
    server.once("error", resolve);
    server.listen(event.port, "127.0.0.1", resolve);
  });
  try {
    fs.mkdirSync(event.folder, { recursive: true });
    fs.writeFileSync(`${event.folder}/secret`, "hunter2", { mode: 0o600 });
  } catch (error) {
    return `${error.code}`;
  }
  return "settled";
}
