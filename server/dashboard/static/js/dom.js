// Small builders of page elements, questions and complaints.

export const byId = (id) => document.getElementById(id);

/** An element with properties, attributes (`data-…`, `aria-…`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const button = (text, act, properties = {}) =>
  make("button", { type: "button", className: "small", textContent: text, onclick: act, ...properties });

export function table(columns, rows) {
  return make("table", {},
    make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col", textContent: name })))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell) =>
      cell instanceof Node ? make("td", {}, cell) : make("td", { textContent: cell ?? "" }))))));
}

/** A part that scrolls, and that the keyboard can reach. */
export const scrolling = (label, ...children) =>
  make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, ...children);

/** Replace the children only if what they say has changed, so that focus and selection stay. */
export function show(parent, key, build) {
  const text = JSON.stringify(key);
  if (parent.shown === text) return;
  parent.shown = text;
  parent.replaceChildren(...build());
}

/** A question with one confirmation. Returns true, or the value of the field if one is asked for. */
export function ask(title, text, { yes = "Yes", field = null, value = "" } = {}) {
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-field").hidden = field === null;
  byId("ask-field").firstElementChild.textContent = field ?? "";
  byId("ask-value").value = value;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const agreed = dialog.returnValue === "yes";
      resolve(field === null ? agreed : agreed ? byId("ask-value").value : null);
    }, { once: true });
  });
}

/** Run an order; an error is shown until the next order succeeds or it is dismissed. */
export async function order(act) {
  const complaint = byId("complaint");
  try {
    const result = await act();
    complaint.hidden = true;
    return result;
  } catch (error) {
    complaint.replaceChildren(error.message, button("Dismiss", () => { complaint.hidden = true; }, { className: "" }));
    complaint.hidden = false;
    return undefined;
  }
}

export const number = (value, digits = 2) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);

export const colour = (name) => {
  const probe = byId("cursor");
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
};
