// Handlers: from a handler's name and a code folder to the function it names, as AWS finds it.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import {
  HandlerNotFound,
  ImportModuleError,
  MalformedHandlerName,
  UserCodeSyntaxError,
} from "./faults.mjs";

// Where AWS's runtime lives: error messages name the file that required a missing module.
const require = createRequire("/var/runtime/index.mjs");

// The function that `name` ("index.handler", "folder/index.nested.handler") stands for.
export async function load(taskRoot, name) {
  if (name.includes("..")) {
    throw new MalformedHandlerName(
      `'${name}' is not a valid handler name. Use absolute paths when specifying root ` +
        "directories in handler names.",
    );
  }
  const file = path.basename(name);
  const folder = name.substring(0, name.indexOf(file));
  const parts = file.match(/^([^.]*)\.(.*)$/);
  if (!parts) {
    throw new MalformedHandlerName("Bad handler");
  }
  const [, moduleName, property] = parts;
  const module = await loadModule(taskRoot, folder, moduleName);
  const handler = property.split(".").reduce((nested, key) => nested && nested[key], module);
  if (!handler) {
    throw new HandlerNotFound(`${name} is undefined or not exported`);
  }
  if (typeof handler !== "function") {
    throw new HandlerNotFound(`${name} is not a function`);
  }
  return handler;
}

async function loadModule(taskRoot, folder, name) {
  try {
    return await find(taskRoot, folder, name);
  } catch (error) {
    if (error instanceof SyntaxError) {
      throw new UserCodeSyntaxError(error);
    }
    if (error?.code === "MODULE_NOT_FOUND") {
      throw new ImportModuleError(error);
    }
    throw error;
  }
}

async function find(taskRoot, folder, name) {
  const stem = path.resolve(taskRoot, folder, name);
  if (fs.existsSync(stem) && fs.statSync(stem).isFile()) {
    return require(stem);
  }
  if (fs.existsSync(`${stem}.js`)) {
    return isModuleScope(path.dirname(stem)) ? importFile(`${stem}.js`) : require(`${stem}.js`);
  }
  if (fs.existsSync(`${stem}.mjs`)) {
    return importFile(`${stem}.mjs`);
  }
  if (fs.existsSync(`${stem}.cjs`)) {
    return require(`${stem}.cjs`);
  }
  return require(require.resolve(name, { paths: [taskRoot, path.resolve(taskRoot, folder)] }));
}

function importFile(file) {
  return import(pathToFileURL(file).href);
}

// Whether the nearest package.json says that .js files are ES modules.
function isModuleScope(folder) {
  if (folder.endsWith("/node_modules")) {
    return false;
  }
  const description = path.join(folder, "package.json");
  if (fs.existsSync(description)) {
    try {
      return JSON.parse(fs.readFileSync(description, "utf8"))?.type === "module";
    } catch (error) {
      console.warn(
        `${description} cannot be read, it will be ignored for ES module detection purposes.`,
        error,
      );
      return false;
    }
  }
  return folder === "/" ? false : isModuleScope(path.dirname(folder));
}
