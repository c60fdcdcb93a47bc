// Attacks in JavaScript: what a function of Node may try with no more than its standard library.

import { spawnSync } from "node:child_process";
import dgram from "node:dgram";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";

export const read = ({ path }) => fs.readFileSync(path, "utf8").slice(0, 64);

export const list = ({ path }) => fs.readdirSync(path);

export function createIn({ folder }) {
  const path = `${folder}/.trivet-${process.pid}`;
  fs.writeFileSync(path, "");
  fs.unlinkSync(path);
  return path;
}

export function openForWriting({ path }) {
  fs.closeSync(fs.openSync(path, "r+"));
  return path;
}

function connected(options) {
  return new Promise((resolve, reject) => {
    const client = net.connect(options, () => {
      client.destroy();
      resolve(JSON.stringify(options));
    });
    client.on("error", reject);
  });
}

export const connect = ({ host, port }) => connected({ host, port });

export const connectToSocket = ({ path }) => connected({ path });

export function routeTo({ host }) {
  return new Promise((resolve, reject) => {
    const socket = dgram.createSocket("udp4");
    socket.on("error", reject);
    socket.connect(53, host, (error) => {
      if (error) return reject(error);
      const { address } = socket.address();
      socket.close(() => resolve(address));
    });
  });
}

export function seeOthers() {
  const mine = new Set([process.pid, process.pid === 1 ? 1 : process.ppid]);
  const others = fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name) && !mine.has(+name));
  if (others.length === 0) throw new Error("alone");
  return others.slice(0, 10);
}

export function signalProcess({ pid }) {
  process.kill(pid, 0);
  return pid;
}

export const readOfProcess = ({ pid, name }) => fs.readFileSync(`/proc/${pid}/${name}`, "utf8");

export function becomeRoot() {
  process.setgid(0);
  process.setuid(0);
  return process.getuid();
}

export function joinGroups() {
  process.setgroups([0, 42]);
  return process.getgroups();
}

export function pushAhead() {
  os.setPriority(0, -5);
  return os.getPriority(0);
}

function run(command, ...args) {
  const ended = spawnSync(command, args, { encoding: "utf8" });
  if (ended.error) throw ended.error;
  if (ended.status !== 0) throw new Error(`${ended.status ?? ended.signal}: ${ended.stderr}`);
  return ended.stdout;
}

export function runAsOwner({ program }) {
  const uid = Number(run(program, "-u"));
  if (uid !== 0) throw new Error(`ran as ${uid}`);
  return uid;
}

export const unshareUser = () => run("/usr/bin/unshare", "--user", "/bin/true");

export const mountInUserNamespace = () =>
  run("/usr/bin/unshare", "--user", "--map-root-user", "--mount", "/bin/mount", "-t", "tmpfs", "x", "/tmp");

export function bindLowPort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", reject);
    server.listen(81, "127.0.0.1", () => server.close(() => resolve("a port of the system's")));
  });
}
