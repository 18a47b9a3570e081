// What this browser remembers for the page: a convenience. Where storage is denied (a page in a frame, a private window),
// full, or holds something else, the page goes on with what it is given here.

function storage(kind) {
  try {
    return window[`${kind}Storage`]; // "local" or "session": reading the name alone may throw
  } catch {
    return null;
  }
}

// The text that is stored under a name; "" where there is none.
export function recall(kind, name) {
  try {
    return storage(kind)?.getItem(name) ?? "";
  } catch {
    return "";
  }
}

export function keep(kind, name, text) {
  try {
    storage(kind)?.setItem(name, text);
  } catch {
    // full, or denied
  }
}

// The object that is stored as JSON under a name; {} where there is none.
export function recallObject(kind, name) {
  try {
    const value = JSON.parse(recall(kind, name));
    return value && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}
