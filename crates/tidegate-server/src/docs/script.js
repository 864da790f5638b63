"use strict";
// The page of the API, made from its document. Text is only ever set as text: what a document says is no markup.

const METHODS = ["get", "put", "post", "delete", "patch", "head", "options"];

function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// What a document says, with what stands between backticks as code.
function prose(text) {
  const parts = (text || "").replace(/\s+/g, " ").split("`");
  return el("span", {}, ...parts.map((part, at) => (at % 2 ? el("code", {}, part) : part)));
}

function resolve(api, schema) {
  let found = schema || {};
  for (let i = 0; found.$ref && i < 20; i += 1) {
    found = found.$ref.split("/").slice(1).reduce((at, part) => (at || {})[part], api) || {};
  }
  return found;
}

function nameOf(schema) {
  return schema && schema.$ref ? schema.$ref.split("/").pop() : null;
}

// What a value is, in few words.
function typeOf(api, schema) {
  if (!schema) return "";
  const name = nameOf(schema);
  const found = resolve(api, schema);
  const many = found.oneOf || found.anyOf || found.allOf;
  if (many && !name) return many.map((each) => typeOf(api, each)).join(" or ");
  const type = Array.isArray(found.type) ? found.type.join(" or ") : found.type;
  if (type === "array") return "list of " + typeOf(api, found.items);
  if (found.enum) return found.enum.map(String).join(" | ");
  if (type === "object" && name) return name;
  return (type || name || "any JSON") + (found.format ? " (" + found.format + ")" : "");
}

// A value such as the schema describes, to begin with.
function example(api, schema, depth) {
  const found = resolve(api, schema);
  if (depth > 4) return null;
  if (found.examples && found.examples.length) return found.examples[0];
  if (found.example !== undefined) return found.example;
  if (found.default !== undefined && found.default !== null) return found.default;
  if (found.enum) return found.enum[0];
  const many = found.oneOf || found.anyOf || found.allOf;
  if (many) {
    const first = many.find((each) => resolve(api, each).type !== "null") || {};
    return example(api, first, depth + 1);
  }
  const type = Array.isArray(found.type) ? found.type[0] : found.type;
  if (type === "array") return [example(api, found.items, depth + 1)];
  if (type === "object") {
    const value = {};
    const required = found.required || [];
    for (const [member, of] of Object.entries(found.properties || {})) {
      if (required.includes(member)) value[member] = example(api, of, depth + 1);
    }
    return value;
  }
  if (type === "integer" || type === "number") return found.minimum || 0;
  if (type === "boolean") return false;
  if (type === "string") return "string";
  return {};
}

function table(caption, heads, rows) {
  const head = el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell) =>
    cell instanceof Node && cell.nodeName === "TD" ? cell : el("td", {}, cell))));
  return el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...body));
}

function members(api, schema) {
  const found = resolve(api, schema);
  const required = found.required || [];
  const rows = Object.entries(found.properties || {}).map(([member, of]) => [
    el("code", {}, member),
    typeOf(api, of),
    prose((required.includes(member) ? "required. " : "") + (of.description || resolve(api, of).description || "")),
  ]);
  return rows.length ? table("Members", ["Name", "What it is", "Meaning"], rows) : null;
}

function curl(api, method, path, operation) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => "$" + name.toUpperCase());
  const parts = ["curl -s" + (method === "get" ? "" : " -X " + method.toUpperCase()) +
    " \"" + location.origin + location.pathname.replace(/\/docs\/?$/, "") + filled + "\""];
  const content = operation.requestBody && operation.requestBody.content;
  if ((operation.parameters || []).some((each) => each.name === "Idempotency-Key")) {
    parts.push("-H 'Idempotency-Key: \"deposit-7231\"'");
  }
  if (content) {
    const media = Object.keys(content)[0];
    parts.push("-H 'Content-Type: " + media + "'");
    parts.push("-d '" + JSON.stringify(example(api, content[media].schema, 0)) + "'");
  }
  return parts.join(" \\\n  ");
}

function copyButton(text) {
  const button = el("button", { type: "button" }, "Copy");
  button.addEventListener("click", () => {
    const done = () => { button.textContent = "Copied"; };
    if (navigator.clipboard) {
      navigator.clipboard.writeText(text).then(done, () => {});
      return;
    }
    // Over plain HTTP from another machine there is no clipboard: select it and let the browser copy.
    const area = el("textarea", { readonly: "" });
    area.value = text;
    button.after(area);
    area.select();
    if (document.execCommand("copy")) done();
    area.remove();
  });
  return button;
}

function endpoint(api, method, path, operation, id) {
  const parameters = (operation.parameters || []).map((each) => [
    el("code", {}, each.name),
    each.in,
    typeOf(api, each.schema),
    prose((each.required ? "required. " : "") + (each.description || "")),
  ]);
  const content = (operation.requestBody && operation.requestBody.content) || {};
  const bodies = Object.entries(content).map(([media, of]) =>
    el("div", {}, el("h4", {}, "Body: " + media + (nameOf(of.schema) ? " · " + nameOf(of.schema) : "")), members(api, of.schema)));
  const answers = Object.entries(operation.responses || {}).map(([status, response]) => {
    const found = resolve(api, response);
    const what = Object.entries(found.content || {})
      .map(([media, of]) => media + (of.schema && typeOf(api, of.schema) ? " · " + typeOf(api, of.schema) : "")).join(", ");
    return [el("td", status >= "400" ? { class: "bad" } : {}, status), prose(found.description), what];
  });
  const command = curl(api, method, path, operation);
  const lines = (operation.description || "").split(/\n\s*\n/).filter(Boolean);
  return el("details", { class: "endpoint", id },
    el("summary", {}, el("span", { class: "method" }, method.toUpperCase()), el("span", { class: "path" }, path),
      el("h3", {}, operation.summary || "")),
    el("div", {},
      ...lines.map((line) => el("p", {}, prose(line))),
      parameters.length ? table("Parameters", ["Name", "In", "What it is", "Meaning"], parameters) : null,
      ...bodies,
      el("h4", {}, "Answers"),
      table("", ["Status", "Meaning", "Body"], answers),
      el("h4", {}, "Try it"),
      el("pre", { tabindex: "0" }, command),
      copyButton(command)));
}

function show(api) {
  document.getElementById("title").textContent = api.info.title + ": the HTTP API, version " + api.info.version;
  document.getElementById("about").replaceChildren(prose(api.info.description));
  const groups = new Map((api.tags || []).map((tag) => [tag.name, { about: tag.description || "", all: [] }]));
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => item[each])) {
      const operation = item[method];
      const tag = (operation.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, { about: "", all: [] });
      groups.get(tag).all.push({ method, path, operation, id: operation.operationId || method + path });
    }
  }
  const contents = document.getElementById("contents");
  const main = document.getElementById("endpoints");
  document.getElementById("loading").remove();
  const found = [];
  for (const [tag, group] of groups) {
    if (!group.all.length) continue;
    main.append(el("h2", { id: "tag-" + tag }, tag), el("p", { class: "quiet" }, prose(group.about)));
    const list = el("ul", {});
    for (const each of group.all) {
      const shown = endpoint(api, each.method, each.path, each.operation, each.id);
      const link = el("li", {}, el("a", { href: "#" + each.id }, el("span", { class: "method" }, each.method.toUpperCase()), " " + each.path));
      main.append(shown);
      list.append(link);
      found.push({ text: (each.method + " " + each.path + " " + (each.operation.summary || "")).toLowerCase(), shown, link });
    }
    contents.append(el("strong", {}, tag), list);
  }
  const find = document.getElementById("find");
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/);
    for (const each of found) {
      const hidden = !words.every((word) => each.text.includes(word));
      each.shown.hidden = hidden;
      each.link.hidden = hidden;
    }
  });
  const open = () => {
    const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (at && at.nodeName === "DETAILS") { at.open = true; at.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
}

fetch("openapi.json")
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error("status " + answer.status))))
  .then(show)
  .catch((error) => {
    document.getElementById("loading").textContent = "The document could not be read: " + error.message;
  });
