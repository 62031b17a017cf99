"""What the page does by itself in the browser."""

from __future__ import annotations

# One look, dark on light, which the bars are made for; and whoever listens to the page hears them change.
_LOOK = """
document.body.classList.remove("dark");
document.querySelector("#answers").setAttribute("aria-live", "polite");
"""

# Each thing that a visitor does has its time, by which the server knows what was done last, in whichever order it hears
# of it.
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

# A box is drawn by moving the edges' sliders at the end. What hardly moves is a tap, and left to gradio.
_BOX = """
const frame = document.querySelector("#frame"), drawn = document.createElement("div"), least = 8;
let from = null, moved = false;
drawn.id = "drawn";
const span = (a, b) => [Math.min(a, b), Math.max(a, b)];
const percent = (at, start, length, shown) =>
  Math.round(10 * Math.min(100, Math.max(0, 50 + 100 * (at - start - length / 2) / shown))) / 10;
frame.addEventListener("dragstart", (event) => event.preventDefault());
frame.addEventListener("click", (event) => { if (moved) event.stopPropagation(); }, true);
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
const end = (event) => {
  const image = from && moved && event.type === "pointerup" ? from.target : null;
  drawn.remove();
  if (image) {
    const {x, y, width, height} = image.getBoundingClientRect();
    const zoom = Math.min(1, width / image.naturalWidth, height / image.naturalHeight);
    const across = (at) => percent(at, x, width, zoom * image.naturalWidth);
    const down = (at) => percent(at, y, height, zoom * image.naturalHeight);
    const [left, right] = span(from.clientX, event.clientX), [top, bottom] = span(from.clientY, event.clientY);
    const edges = [across(left), down(top), across(right), down(bottom)];
    document.querySelectorAll(".box input[type=number]").forEach((field, i) => enter(field, edges[i]));
  }
  from = null;
};
for (const done of ["pointerup", "pointercancel"]) document.addEventListener(done, end);
"""

READY = f"() => {{{_LOOK}{_CLOCK}{_BOX}}}"
