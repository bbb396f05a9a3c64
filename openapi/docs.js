"use strict";
// Reads /openapi/v3 and shows kinds, their fields as a tree that opens on demand, and their operations; a GET can be tried.
const $ = (id) => document.getElementById(id);
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value); else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}
async function json(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (!answer.ok) throw new Error(path + ": " + answer.status);
  return answer.json();
}
const kinds = [];
function resolve(schema, doc) {
  let found = schema, text = schema.description;
  if (found.allOf && found.allOf.length === 1) found = found.allOf[0];
  if (found.$ref) found = doc.components.schemas[found.$ref.split("/").pop()] || {};
  return { schema: found, text: text || found.description || "" };
}
function typeOf(schema, doc) {
  const { schema: found } = resolve(schema, doc);
  if (found.enum) return found.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (found.type === "array") return "[]" + typeOf(found.items || {}, doc);
  if (found.type === "object" && found.additionalProperties) return "map of " + typeOf(found.additionalProperties, doc);
  if (found.anyOf) return found.anyOf.map((each) => typeOf(each, doc)).join(" | ");
  return found.type || "any";
}
function inner(schema, doc) {
  const { schema: found } = resolve(schema, doc);
  if (found.type === "array") return inner(found.items || {}, doc);
  if (found.additionalProperties) return inner(found.additionalProperties, doc);
  return found.properties ? found : null;
}
function tree(schema, doc) {
  const list = el("ul", { class: "tree" });
  const required = new Set(schema.required || []);
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const head = [el("code", {}, name), " ", el("span", { class: "type" }, typeOf(field, doc))];
    if (required.has(name)) head.push(" ", el("span", { class: "must" }, "required"));
    if (field.default !== undefined) head.push(" ", el("span", { class: "dim" }, "default " + JSON.stringify(field.default)));
    const { text } = resolve(field, doc);
    if (text) head.push(el("span", { class: "dim" }, " " + text));
    const below = inner(field, doc);
    if (!below) { list.append(el("li", {}, ...head)); continue; }
    const details = el("details", {}, el("summary", {}, ...head));
    details.addEventListener("toggle", () => { if (details.open && details.childElementCount === 1) details.append(tree(below, doc)); });
    list.append(el("li", {}, details));
  }
  return list;
}
function operation(path, verb, op, shared) {
  const box = el("details", { class: "op" }, el("summary", {}, el("span", { class: "verb" }, verb.toUpperCase()), el("span", { class: "path" }, path)));
  box.append(el("p", {}, op.description || ""));
  const parameters = [...(shared || []), ...(op.parameters || [])];
  if (parameters.length) {
    box.append(el("table", {}, ...parameters.map((each) => el("tr", {}, el("td", {}, el("code", {}, each.name)), el("td", { class: "dim" }, each.in), el("td", {}, each.description || "")))));
  }
  box.append(el("table", {}, ...Object.entries(op.responses || {}).map(([code, each]) => el("tr", {}, el("td", {}, el("code", {}, code)), el("td", { class: "dim" }, each.description || "")))));
  if (verb === "get" && !path.includes("{") && !path.endsWith("/log")) {
    const shown = el("pre", { hidden: "" });
    box.append(el("button", { onclick: async () => {
      shown.hidden = false; shown.textContent = "…";
      const answer = await fetch(path + "?limit=20", { headers: { accept: "application/json" } });
      const text = await answer.text();
      try { shown.textContent = answer.status + "\n" + JSON.stringify(JSON.parse(text), null, 2); } catch { shown.textContent = answer.status + "\n" + text; }
    } }, "Try"), shown);
  }
  return box;
}
function show(kind) {
  const { doc, schema, gvk, paths } = kind;
  const version = gvk.group ? gvk.group + "/" + gvk.version : gvk.version;
  $("main").replaceChildren(
    el("h2", {}, gvk.kind), el("p", { class: "dim path" }, version), el("p", {}, schema.description || ""),
    el("h3", {}, "Fields"), tree(schema, doc), el("h3", {}, "Operations"),
    ...paths.flatMap(([path, item]) => Object.entries(item).filter(([verb]) => verb !== "parameters").map(([verb, op]) => operation(path, verb, op, item.parameters))));
  for (const link of document.querySelectorAll("nav a")) { if (link.hash === "#" + kind.id) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current"); }
}
function menu(words) {
  const groups = new Map();
  for (const kind of kinds) {
    if (words && !kind.text.includes(words)) continue;
    const name = kind.gvk.group || "core";
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(el("a", { href: "#" + kind.id }, kind.gvk.kind));
  }
  $("kinds").replaceChildren(...[...groups].flatMap(([name, links]) => [el("h2", {}, name), ...links]));
}
function follow() {
  const kind = kinds.find((each) => "#" + each.id === location.hash) || kinds[0];
  if (kind) show(kind);
}
(async () => {
  try {
    const index = await json("/openapi/v3");
    for (const entry of Object.values(index.paths)) {
      const doc = await json(entry.serverRelativeURL);
      for (const schema of Object.values(doc.components.schemas)) {
        const gvk = (schema["x-kubernetes-group-version-kind"] || [])[0];
        if (!gvk) continue;
        const paths = Object.entries(doc.paths).filter(([, item]) => Object.values(item).some((op) => (op["x-kubernetes-group-version-kind"] || {}).kind === gvk.kind));
        if (paths.length) kinds.push({ doc, schema, gvk, paths, id: gvk.kind, text: JSON.stringify([gvk.kind, schema]).toLowerCase() });
      }
    }
    $("find").addEventListener("input", (event) => menu(event.target.value.trim().toLowerCase()));
    window.addEventListener("hashchange", follow);
    menu(""); follow();
  } catch (error) { $("main").replaceChildren(el("p", {}, "The documents cannot be read: " + error.message)); }
})();
