// Fetches the two parts of the page that change, and puts them in place where they differ from what is shown.
"use strict";
const EVERY_MS = 3000;
const chosen = document.body.dataset.stage;

async function renew(part) {
  const answer = await fetch(`${part}?stage=${encodeURIComponent(chosen)}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${answer.status}`);
  const html = await answer.text();
  const section = document.getElementById(part);
  if (section.shown === html) return;
  section.shown = html;
  const open = [...section.querySelectorAll("details")].map((one) => one.open);
  section.innerHTML = html;
  section.querySelectorAll("details").forEach((one, place) => { one.open = open[place] ?? one.open; });
}

async function look() {
  try {
    await renew("state");
    await renew("stage");
    document.getElementById("read").textContent = new Date().toLocaleTimeString();
    document.getElementById("lost").hidden = true;
  } catch {
    document.getElementById("lost").hidden = false;
  }
  setTimeout(look, document.hidden ? 10 * EVERY_MS : EVERY_MS);
}
look();
