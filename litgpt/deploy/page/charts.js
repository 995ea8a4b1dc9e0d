"use strict";

// Line charts as SVG: several runs in each, with the values under the pointer.

const HEIGHT = 180, LEFT = 52, BOTTOM = 20, TOP = 6;
const SVG = "http:" + "//www.w3.org/2000/svg";   // a name, not an address that is asked

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function ticks(low, high, most) { // round numbers between two others
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= rough), found = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9); n++) found.push(n * step);
  return found;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(1) + " M";
  if (size >= 1e4) return (value / 1e3).toFixed(1) + " k";
  if (Number.isInteger(value)) return String(value);
  return size >= 0.01 ? value.toPrecision(4).replace(/\.?0+$/, "") : value.toExponential(1);
}

function smoothed(points) {       // as in the report: a moving average over a twenty-fifth
  const weight = Math.max(0, 1 - 25 / points.length);
  let total = 0, mass = 0;
  return points.map(([x, y]) => { total = weight * total + (1 - weight) * y; mass = weight * mass + 1 - weight; return [x, total / mass]; });
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  return [low, high];
}

// Each series is {label, color, points: [[step, value]], dashed}; points without a value are left out.
function chart(figure, title, series) {
  const lines = series.map((one) => ({ ...one, points: one.points.filter(([, y]) => y !== null) })).filter((one) => one.points.length);
  const width = Math.max(200, figure.clientWidth - 26), all = lines.flatMap((one) => one.points);
  const [x0, x1] = extent(all.map(([x]) => x)), [y0, y1] = extent(all.map(([, y]) => y));
  const px = (x) => LEFT + (x - x0) / (x1 - x0) * (width - LEFT - 6), py = (y) => TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const path = (points) => points.map(([x, y], n) => `${n ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  const last = lines.map((one) => `${one.label} ${short(one.points.at(-1)[1])}`).join(", ");
  const image = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": `${title}: ${last}` });
  for (const y of ticks(y0, y1, 4)) image.append(svg("line", { class: "grid", x1: LEFT, x2: width - 6, y1: py(y), y2: py(y) }),
    svg("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, short(y)));
  for (const x of ticks(x0, x1, Math.max(2, width / 110))) image.append(svg("text", { x: px(x), y: HEIGHT - 4, "text-anchor": "middle" }, short(x)));
  for (const { points, color, dashed, smooth } of lines) {
    if (smooth) image.append(svg("path", { class: `raw ${color}`, d: path(points) }));
    image.append(svg("path", { class: `line ${color}${dashed ? " dashed" : ""}`, d: path(smooth ? smoothed(points) : points) }));
    if (points.length < 30) for (const [x, y] of points) image.append(svg("circle", { class: `dot ${color}`, cx: px(x), cy: py(y), r: 2.2 }));
  }
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  image.append(cursor);
  const caption = make("figcaption", {}, title, ...lines.map((one) =>
    make("span", { class: "value" }, make("span", { class: `key ${one.color}` }), make("span", {}, one.label), " ", make("b", {}, short(one.points.at(-1)[1])))));
  const values = caption.querySelectorAll("b");
  const show = (at) => {          // the values at a step; null: the last ones
    lines.forEach(({ points }, n) => {
      const point = at === null ? points.at(-1) : points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
      values[n].textContent = short(point[1]) + (at === null ? "" : ` at ${short(point[0])}`);
    });
    cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) for (const side of ["x1", "x2"]) cursor.setAttribute(side, px(at));
  };
  image.addEventListener("pointermove", (event) => {
    const x = (event.clientX - image.getBoundingClientRect().left) / image.clientWidth * width;
    show(Math.min(x1, Math.max(x0, x0 + (x - LEFT) / (width - LEFT - 6) * (x1 - x0))));
  });
  image.addEventListener("pointerleave", () => show(null));
  figure.replaceChildren(caption, image);
}
