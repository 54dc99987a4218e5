// Exchanges the token for a cookie, which scripts can't read.

const form = document.getElementById("login");
const complaint = document.getElementById("complaint");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = JSON.stringify({ token: form.elements.token.value });
  try {
    const answer = await fetch("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (answer.ok) return location.assign("/");
    complaint.textContent = (await answer.json()).detail;
  } catch {
    complaint.textContent = "the server does not answer; is `volition serve` running?";
  }
  complaint.hidden = false;
});
