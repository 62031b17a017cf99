"""The JavaScript that the page runs in the browser."""

from __future__ import annotations

# Always dark on light, which the bars are made for.
_LOOK = """
if (document.body.classList.contains("dark")) {
  const address = new URL(location);
  address.searchParams.set("__theme", "light");
  location.replace(address);
}
"""

# A screen reader is told when the answers change, and the Tab key skips pictures that only a pointer can use.
_LISTENER = """
document.querySelector("#answers").setAttribute("aria-live", "polite");
const pass = () => {
  for (const button of document.querySelectorAll("#frame button, #target button, #found button")) button.tabIndex = -1;
};
new MutationObserver(pass).observe(document.querySelector(".gradio-container"), {childList: true, subtree: true});
pass();
"""

# The time of each thing that a visitor does is sent along, so that the server knows what was done last, whatever the
# order in which it hears.
_CLOCK = """
const enter = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};
for (const done of ["pointerdown", "pointerup", "keydown", "input"]) {  // input: what is pasted or dictated has no key
  document.addEventListener(done, ({target}) => {
    const clock = document.querySelector("#clock input");
    if (target !== clock) enter(clock, performance.now());
  }, true);
}
"""

# While a redrawn picture is on its way, the browser does not know its size: what is done on it meanwhile waits.
_WAIT = """
const known = (image, then) => {
  const {src} = image;
  if (image.naturalWidth) then();
  else image.addEventListener("load", () => { if (image.src === src) then(); }, {once: true});
};
"""

# Dragging a box moves the sliders of its edges at the end. A pointer that hardly moves is a tap, left to gradio.
_BOX = """
const frame = document.querySelector("#frame"), drawn = document.createElement("div"), least = 8;
let from = null, moved = false;
drawn.id = "drawn";
const span = (a, b) => [Math.min(a, b), Math.max(a, b)];
const percent = (at, start, length, shown) =>
  Math.round(10 * Math.min(100, Math.max(0, 50 + 100 * (at - start - length / 2) / shown))) / 10;
frame.addEventListener("dragstart", (event) => event.preventDefault());
frame.addEventListener("click", (event) => { if (moved) event.stopImmediatePropagation(); }, true);
frame.addEventListener("pointerdown", (event) => {
  moved = false;
  from = event.target.matches("img") && event.isPrimary ? event : null;
});
document.addEventListener("pointermove", (event) => {
  if (!from) return;
  const [left, right] = span(from.clientX, event.clientX), [top, bottom] = span(from.clientY, event.clientY);
  moved ||= Math.max(right - left, bottom - top) >= least;
  if (!moved) return;
  Object.assign(drawn.style, {
    left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px`,
  });
  document.body.append(drawn);
});
const move = (image, across, down) => {
  const {x, y, width, height} = image.getBoundingClientRect();
  const zoom = Math.min(1, width / image.naturalWidth, height / image.naturalHeight);
  const [left, right] = across.map((at) => percent(at, x, width, zoom * image.naturalWidth));
  const [top, bottom] = down.map((at) => percent(at, y, height, zoom * image.naturalHeight));
  const edges = [left, top, right, bottom];
  document.querySelectorAll(".box input[type=number]").forEach((field, i) => enter(field, edges[i]));
};
const end = (event) => {
  drawn.remove();
  if (from && moved && event.type === "pointerup") {
    const {target} = from;
    const across = span(from.clientX, event.clientX), down = span(from.clientY, event.clientY);
    known(target, () => move(target, across, down));
  }
  from = null;
};
for (const done of ["pointerup", "pointercancel"]) document.addEventListener(done, end);
"""

# Gradio drops a tap on a picture whose size it does not know yet.
_TAP = """
for (const tapped of document.querySelectorAll("#frame, #target")) {
  tapped.addEventListener("click", (event) => {
    const image = event.target.closest("button")?.querySelector("img"), {clientX, clientY} = event;
    if (!image || image.naturalWidth) return;
    event.stopPropagation();
    known(image, () => image.dispatchEvent(new MouseEvent("click", {bubbles: true, clientX, clientY})));
  }, true);
}
"""

READY = f"() => {{{_LOOK}{_LISTENER}{_CLOCK}{_WAIT}{_BOX}{_TAP}}}"
