// REST calls of the page. A problem document becomes an Error with its detail.

export const operator = document.getElementById("operator");
if (operator) {
  operator.value = localStorage.getItem("operator") ?? "";
  operator.addEventListener("change", () => {
    if (operator.checkValidity()) localStorage.setItem("operator", operator.value);
  });
}

export async function call(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (operator?.value && operator.checkValidity()) headers["X-Operator"] = operator.value;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("the server does not answer; is `volition serve` running?");
  }
  if (answer.status === 401) location.assign("/login");
  const text = await answer.text();
  const content = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(content?.detail ?? `${answer.status} ${answer.statusText}`);
  return content;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const at = (...parts) => "/v1/" + parts.map(encodeURIComponent).join("/");
