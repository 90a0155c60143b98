// SPDX-License-Identifier: MIT
// Make elements, and change a part of the page into what it should be. Text is never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Attributes that are null, undefined or false are left out; so are such children. */
export function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.flat(2).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Make the children of an element like these. Elements that stay keep focus, scrolling and selection. */
export function update(parent, ...children) {
  const holder = document.createDocumentFragment();
  holder.append(...present(children));
  align(parent, [...holder.childNodes]);
}

function align(parent, wanted) {
  const keys = new Set(wanted.map(keyOf).filter(Boolean));
  const kept = new Map();
  for (const child of [...parent.children]) {
    const key = keyOf(child);
    if (key && keys.has(key)) kept.set(key, child);
    else if (key) child.remove();
  }
  let place = parent.firstChild;
  for (const node of wanted) {
    const key = keyOf(node);
    const old = key ? kept.get(key) : place;
    if (!old || old.nodeName !== node.nodeName || keyOf(old) !== key) {
      parent.insertBefore(node, place);
      continue;
    }
    if (old !== place) parent.insertBefore(old, place);
    become(old, node);
    place = old.nextSibling;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function keyOf(node) {
  return node.dataset?.key;
}

function become(old, node) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== node.data) old.data = node.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!node.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  align(old, [...node.childNodes]);
}
