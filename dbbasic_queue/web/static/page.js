// Keeps the marked parts of the page up to date. Without this script, reloading does the same.
"use strict";

(() => {
  const main = document.getElementById("main");
  const seconds = Number(main.dataset.refresh);
  const note = document.getElementById("updating");
  if (!seconds || !note) return;

  let paused = false;
  let timer = 0;
  let failures = 0;
  let isReading = false; // a long queue, for the first time

  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  const text = document.createElement("span");
  note.append(text, " ", button);

  function show() {
    const problem = isReading ? "the queue is being read for the first time." : "no answer.";
    text.textContent = paused ? "Not updated." : failures ? `Not up to date: ${problem}` : "Kept up to date.";
    button.textContent = paused ? "Update" : "Stop updating";
  }

  button.addEventListener("click", () => {
    paused = !paused;
    show();
    if (paused) clearTimeout(timer);
    else refresh();
  });

  // What a user is doing in a part: then it is left as it is.
  function isInUse(part) {
    const active = document.activeElement;
    if (part.contains(active) && active.matches("input, textarea, select")) return true;
    const selection = getSelection();
    return !selection.isCollapsed && part.contains(selection.anchorNode);
  }

  // An element's place among the elements that can have the focus, to find it again.
  const focusable = "a, button, summary, [tabindex]";

  function replace(old, fresh) {
    if (old.outerHTML === fresh.outerHTML || isInUse(old)) return;
    const active = document.activeElement;
    const hadFocus = old !== active && old.contains(active);
    const place = hadFocus ? [...old.querySelectorAll(focusable)].indexOf(active) : -1;
    const same = hadFocus ? active.outerHTML : "";
    const open = [...old.querySelectorAll("details[open]")].map((found) => found.id);
    const scrolled = [...old.querySelectorAll(".scroll, pre")].map((found) => [found.scrollLeft, found.scrollTop]);
    for (const id of open) {
      const found = id && fresh.querySelector(`#${CSS.escape(id)}`);
      if (found) found.open = true;
    }
    old.replaceChildren(...fresh.childNodes);
    old.className = fresh.className;
    [...old.querySelectorAll(".scroll, pre")].forEach((found, at) => {
      if (scrolled[at]) [found.scrollLeft, found.scrollTop] = scrolled[at];
    });
    if (hadFocus) {
      const candidates = [...old.querySelectorAll(focusable)];
      (candidates.find((found) => found.outerHTML === same) || candidates[place])?.focus({ preventScroll: true });
    }
  }

  // Replaces, adds and removes parts, so that they are those of the fresh page.
  function arrange(parts) {
    const ids = new Set(parts.map((part) => part.id));
    let before = null;
    for (const part of parts) {
      const old = document.getElementById(part.id);
      if (old) replace(old, part);
      else if (before) before.after(part);
      else main.append(part);
      before = old || part;
    }
    for (const old of main.querySelectorAll(":scope > [data-live]")) {
      if (!ids.has(old.id) && !isInUse(old)) old.remove();
    }
  }

  async function refresh() {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    const started = performance.now();
    isReading = false;
    try {
      const address = new URL(location.href);
      address.searchParams.delete("done");
      address.searchParams.delete("count");
      const response = await fetch(address, { credentials: "same-origin", cache: "no-store", redirect: "error" });
      isReading = response.status === 202;
      if (!response.ok || isReading) throw new Error(String(response.status));
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      const word = document.getElementById("verdict-word");
      const before = word && word.textContent;
      if (paused) return;
      arrange([...fresh.querySelectorAll("main > [data-live]")]);
      announce(before);
      const clock = document.getElementById("clock");
      if (clock) clock.textContent = fresh.getElementById("clock").textContent;
      failures = 0;
    } catch {
      failures += 1;
    }
    show();
    // A large queue takes longer to read: don't ask all the time.
    const pause = Math.max(seconds * 1000 * Math.min(2 ** failures, 20), 10 * (performance.now() - started));
    timer = setTimeout(refresh, pause);
  }

  // A screen reader hears the verdict when it has changed, and nothing else.
  const voice = document.createElement("p");
  voice.className = "visually-hidden";
  voice.setAttribute("aria-live", "polite");
  document.body.append(voice);

  function announce(before) {
    const word = document.getElementById("verdict-word");
    if (word && before && word.textContent !== before) {
      voice.textContent = `${word.textContent}: ${word.nextElementSibling.textContent}`;
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) refresh();
  });
  show();
  timer = setTimeout(refresh, seconds * 1000);
})();
