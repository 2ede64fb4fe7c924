/* A packed 1-bit network in the page: the steps of dcpnas_lite/packed/network.py in 32-bit words, and a digit to draw.
   Plain JavaScript that asks the network for nothing; it ends at once on pages without #digit-bench. Numbers in a Float32Array are
   rounded when they are stored, sums of many are float64: as in Python. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const bench = document.getElementById("digit-bench");
  if (!bench) return;
  const given = JSON.parse(bench.querySelector("script").textContent);
  const KINDS = { float32: Float32Array, int16: Int16Array, uint8: Uint8Array };
  const octets = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const arrays = Object.fromEntries(Object.entries(given.arrays).map(([name, [kind, text]]) => [name, new KINDS[kind](octets(text).buffer)]));
  const of = (k, name) => arrays[`${k}.${name}`];
  const bit = (packed, i) => (packed[i >> 3] >> (i & 7)) & 1;

  // -- bits ----------------------------------------------------------------------------------------------------------
  function popcount(word) {
    word -= (word >>> 1) & 0x55555555;
    word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
    return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
  }
  /* n truth values, test(0) … test(n − 1), into words from `at` on. */
  function pack(words, at, n, test) {
    for (let i = 0; i < n; i++) if (test(i)) words[at + (i >> 5)] |= 1 << (i & 31);
  }
  function signs(x, step, test) {
    const width = Math.ceil(x.c / 32), words = new Uint32Array(x.h * x.w * width);
    if (step.groups !== 1) throw new Error("groups of channels are not in this page");
    for (let p = 0; p < x.h * x.w; p++) pack(words, p * width, x.c, (c) => test(x.data[p * x.c + c], c));
    return { h: x.h, w: x.w, c: x.c, words, width };
  }
  /* For each pixel of the result and each tap of the kernel: visit(pixel, tap, place in x or −1 for the border). */
  function slide(x, step, kernel, padding, visit) {
    const dilation = step.dilation || 1, size = (n) => Math.floor((n + 2 * padding - dilation * (kernel - 1) - 1) / step.stride) + 1;
    const h = size(x.h), w = size(x.w);
    for (let p = 0; p < h * w; p++)
      for (let t = 0; t < kernel * kernel; t++) {
        const y = Math.floor(p / w) * step.stride - padding + Math.floor(t / kernel) * dilation;
        const z = (p % w) * step.stride - padding + (t % kernel) * dilation;
        visit(p, t, y < 0 || z < 0 || y >= x.h || z >= x.w ? -1 : y * x.w + z);
      }
    return [h, w];
  }
  const outside = (step, i, n) => (step.border > 0 ? (i + 1) * 32 <= n ? -1 : (1 << n % 32) - 1 : 0);

  // -- steps: (inputs, step, its number) → value {h, w, c, data} or {h, w, c, words, width} ---------------------------
  const OPERATIONS = {
    convolution([x], step, k) {
      const weight = of(k, "weight"), taps = step.kernel * step.kernel, filters = weight.length / (taps * x.c), sums = [];
      const [h, w] = slide(x, step, step.kernel, step.padding, (p, t, place) => {
        if (place < 0) return;
        for (let c = 0; c < x.c; c++)
          for (let o = 0; o < filters; o++)
            sums[p * filters + o] = (sums[p * filters + o] || 0) + x.data[place * x.c + c] * weight[(o * x.c + c) * taps + t];
      });
      return { h, w, c: filters, data: Float32Array.from(sums) };
    },
    affine: ([x], _, k) => ({ ...x, data: x.data.map((v, i) => v * of(k, "scale")[i % x.c] + of(k, "shift")[i % x.c]) }),
    sign: ([x], step, k) => signs(x, step, (v, c) => (v >= of(k, "threshold")[c]) !== Boolean(bit(of(k, "flip"), c))),
    interval: ([x], step, k) =>
      signs(x, step, (v, c) => (of(k, "low")[c] <= v && v <= of(k, "high")[c]) !== Boolean(bit(of(k, "flip"), c))),
    product([x], step, k) {
      const { n, filters, kernel } = step, taps = kernel * kernel, width = x.width, packed = of(k, "weight");
      const weight = new Uint32Array(filters * taps * width);
      for (let f = 0; f < filters * taps; f++) pack(weight, f * width, n, (i) => bit(packed, f * n + i));
      const side = (s) => Math.floor((s + 2 * step.padding - step.dilation * (kernel - 1) - 1) / step.stride) + 1;
      const data = new Int32Array(side(x.h) * side(x.w) * filters).fill(taps * n);
      const [h, w] = slide(x, step, kernel, step.padding, (p, t, place) => {
        for (let v = 0; v < width; v++) {
          const pixel = place < 0 ? outside(step, v, n) : x.words[place * width + v];
          for (let o = 0; o < filters; o++) data[p * filters + o] -= 2 * popcount(pixel ^ weight[(o * taps + t) * width + v]);
        }
      });
      return { h, w, c: filters, data };
    },
    depthwise([x], step, k) {
      const { filters, kernel } = step, taps = kernel * kernel, packed = of(k, "weight");
      const side = (s) => Math.floor((s + 2 * step.padding - step.dilation * (kernel - 1) - 1) / step.stride) + 1;
      const data = new Int32Array(side(x.h) * side(x.w) * filters).fill(taps);
      const [h, w] = slide(x, step, kernel, step.padding, (p, t, place) => {
        for (let c = 0; c < filters; c++) {
          const pixel = place < 0 ? Number(step.border > 0) : (x.words[place * x.width + (c >> 5)] >>> (c & 31)) & 1;
          if (pixel !== bit(packed, t * filters + c)) data[p * filters + c] -= 2;
        }
      });
      return { h, w, c: filters, data };
    },
    prelu: ([x], _, k) => {
      const beta = of(k, "beta"), slope = of(k, "slope"), data = new Float32Array(x.data.length);
      for (let i = 0; i < data.length; i++) data[i] = x.data[i] * beta[i % x.c];
      return { ...x, data: data.map((v, i) => (v > 0 ? v : v * slope[i % x.c])) };
    },
    pool([x], step) {
      const { kernel, stride, padding, mean } = step;
      const side = (s) => Math[step.ceil ? "ceil" : "floor"]((s + 2 * padding - kernel) / stride) + 1;
      const h = side(x.h), w = side(x.w), data = new Float32Array(h * w * x.c);
      for (let i = 0; i < data.length; i++) {
        const c = i % x.c, p = (i - c) / x.c, top = Math.floor(p / w) * stride - padding, left = (p % w) * stride - padding;
        let value = mean ? 0 : -Infinity, count = 0;
        for (let y = Math.max(top, 0); y < Math.min(top + kernel, x.h); y++)
          for (let z = Math.max(left, 0); z < Math.min(left + kernel, x.w); z++, count++) {
            const seen = x.data[(y * x.w + z) * x.c + c];
            value = mean ? Math.fround(value + seen) : Math.max(value, seen);
          }
        data[i] = mean ? value / count : value;
      }
      return { h, w, c: x.c, data };
    },
    add: ([a, b]) => ({ ...a, data: a.data.map((v, i) => v + b.data[i]) }),
    zeros: ([x], step) => {
      const [h, w] = [x.h, x.w].map((s) => Math.ceil(s / step.stride));
      return { h, w, c: x.c, data: new Float32Array(h * w * x.c) };
    },
    concatenate(parts) {
      const { h, w } = parts[0], c = parts.reduce((sum, x) => sum + x.c, 0), data = new Float32Array(h * w * c);
      for (let p = 0, i = 0; p < h * w; p++) for (const x of parts) for (let k = 0; k < x.c; k++) data[i++] = x.data[p * x.c + k];
      return { h, w, c, data };
    },
    mean([x]) {
      const data = new Float64Array(x.c);
      x.data.forEach((v, i) => (data[i % x.c] += v));
      return { h: 1, w: 1, c: x.c, data: data.map((v) => v / (x.h * x.w)) };
    },
    linear([x], _, k) {
      const weight = of(k, "weight"), data = Float32Array.from(of(k, "bias"));
      for (let o = 0; o < data.length; o++) {
        let sum = 0;
        for (let c = 0; c < x.c; c++) sum += x.data[c] * weight[o * x.c + c];
        data[o] = sum + of(k, "bias")[o];
      }
      return { h: 1, w: 1, c: data.length, data };
    },
  };

  function run(image) {
    const values = [image];
    given.steps.forEach((step, k) => values.push(OPERATIONS[step.op](step.inputs.map((i) => values[i]), step, k)));
    return values;
  }
  /* 8 × 8 intensities 0 … 16 → the 16 × 16 normalised image, bilinear as in dcpnas_lite.data.digits. */
  function prepare(pixels) {
    const data = new Float32Array(256), mean = Math.fround(given.mean), std = Math.fround(given.std);
    const at = (i) => { const s = Math.max((i + 0.5) / 2 - 0.5, 0), low = Math.floor(s); return [low, Math.min(low + 1, 7), s - low]; };
    for (let i = 0; i < 256; i++) {
      const [y0, y1, v] = at(i >> 4), [x0, x1, u] = at(i & 15), row = (y) => pixels[8 * y + x0] * (1 - u) + pixels[8 * y + x1] * u;
      data[i] = Math.fround((row(y0) * (1 - v) + row(y1) * v) / 16 - mean) / std;
    }
    return { h: 16, w: 16, c: 1, data };
  }
  const shipped = octets(given.digits), labels = given.labels;
  const digit = (k) => Array.from(shipped.subarray(64 * k, 64 * k + 64));
  const best = (logits) => logits.indexOf(Math.max(...logits));

  // -- the page ------------------------------------------------------------------------------------------------------
  bench.querySelector(".digit-static").remove();
  const ui = document.createElement("div");
  ui.innerHTML = `
    <div class="digit-row"><canvas width="256" height="256" tabindex="0" role="img" aria-label="Draw a digit. By keyboard: arrows move
    the pen, the space bar puts it down or lifts it."></canvas><canvas class="digit-seen" width="128" height="128" role="img"
    aria-label="What the network sees: 8 by 8 pixels"></canvas><table class="digit-shares"><caption>Probability of each digit</caption><tbody></tbody></table></div>
    <div class="bench-buttons"><button data-do="clear">Clear</button><button data-do="next">A test digit</button>
    <button data-do="all">All ${labels.length} test digits</button></div><p class="digit-said" aria-live="polite"></p>
    <div class="bench-controls"><label>Pixel <input type="range" class="digit-pixel" min="0" max="255" value="136"></label>
    <label>Filter <select class="digit-filter"></select></label></div>
    <div class="heat-frame" tabindex="0" role="region" aria-label="One product, bit by bit"><table class="digit-bits"></table></div><p class="digit-count"></p>`;
  bench.append(ui);
  const find = (name) => ui.querySelector(name), [canvas, seen] = ui.querySelectorAll("canvas"), pen = canvas.getContext("2d");
  const first = given.steps.findIndex((step) => step.op === "product"), layer = given.steps[first];
  let values = null, next = 0, down = false, at = [128, 128], cursor = null, sample = false;
  find(".digit-filter").innerHTML = Array.from({ length: layer.filters }, (_, o) => `<option>${o}</option>`).join("");

  function show(pixels, said) {
    values = run(prepare(pixels));
    const logits = Array.from(values.at(-1).data), top = Math.max(...logits), shares = logits.map((v) => Math.exp(v - top));
    const total = shares.reduce((a, b) => a + b);
    table(shares.map((s) => s / total), best(logits));
    find(".digit-said").textContent = `The network says ${best(logits)}. ${said}`;
    paint(seen, pixels);
    bits();
    return best(logits);
  }
  function table(shares, found) {
    find(".digit-shares tbody").innerHTML = shares.map((s, k) => `<tr class="${k === found ? "digit-best" : ""}"><th>${k}</th>
      <td><span style="width:${100 * s}%"></span></td><td>${found < 0 ? "–" : s.toFixed(2)}</td></tr>`).join("");
  }
  /* 8 × 8 intensities fill a canvas. */
  function paint(where, pixels) {
    const eye = where.getContext("2d"), side = where.width / 8;
    pixels.forEach((v, i) => { eye.fillStyle = `rgb(${[v, v, v].map((g) => 16 * g - (g > 15))})`; eye.fillRect((i % 8) * side, (i >> 3) * side, side, side); });
  }
  /* One product of the first 1-bit layer, in its bits. */
  function bits() {
    const p = Number(find(".digit-pixel").value), o = Number(find(".digit-filter").value), n = layer.n, x = values[layer.inputs[0]];
    const of_image = Array.from({ length: n }, (_, i) => (x.words[p * x.width + (i >> 5)] >>> (i & 31)) & 1);
    const of_filter = Array.from({ length: n }, (_, i) => bit(of(first, "weight"), o * n + i));
    const xnor = of_image.map((b, i) => Number(b === of_filter[i])), count = xnor.reduce((a, b) => a + b);
    const row = (name, list) => `<tr><th scope="row">${name}</th>${list.map((b) => `<td class="${b ? "one" : ""}">${b}</td>`).join("")}</tr>`;
    find(".digit-bits").innerHTML = row("image", of_image) + row("filter", of_filter) + row("XNOR", xnor);
    find(".digit-count").textContent = `Row ${p >> 4}, column ${p & 15}: ${count} of ${n} bits agree, 2 · ${count} − ${n} = ${2 * count - n}; ` +
      `the layer's own product is ${values[first + 1].data[p * layer.filters + o]}.`;
  }
  /* What was drawn, as the data were made: the digit fills a square, and a pixel is the share of ink in it, in sixteenths. */
  function look() {
    const ink = pen.getImageData(0, 0, 256, 256).data, inked = (x, y) => x >= 0 && y >= 0 && x < 256 && y < 256 && ink[4 * (256 * y + x)] > 127;
    let [left, right, top, bottom] = [256, -1, 256, -1];
    for (let y = 0; y < 256; y++) for (let x = 0; x < 256; x++) if (inked(x, y)) {
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    if (right < 0) return;
    const side = Math.max(right - left, bottom - top) + 1, x0 = (left + right + 1 - side) / 2, y0 = (top + bottom + 1 - side) / 2;
    const pixels = Array(64).fill(0);
    for (let y = 0; y < 64; y++) for (let x = 0; x < 64; x++)
      if (inked(Math.floor(x0 + ((x + 0.5) * side) / 64), Math.floor(y0 + ((y + 0.5) * side) / 64))) pixels[8 * (y >> 3) + (x >> 3)] += 1;
    show(pixels.map((v) => Math.round(v / 4)), "");
  }
  function clear() {
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, 256, 256);
    sample = false;
  }
  /* From the pen's place to another; the first stroke on a sample begins on an empty canvas. */
  function line(to) {
    if (sample) clear();
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 26, lineCap: "round" });
    pen.beginPath(); pen.moveTo(...at); pen.lineTo(...to); pen.stroke();
    at = to;
  }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * 256) / box.width, ((event.clientY - box.top) * 256) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); down = true; at = place(event); line(at); });
  canvas.addEventListener("pointermove", (event) => down && line(place(event)));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { if (down) look(); down = false; });
  const MOVES = { ArrowLeft: [-16, 0], ArrowRight: [16, 0], ArrowUp: [0, -16], ArrowDown: [0, 16] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (!move) cursor = !cursor;
    const to = move ? at.map((v, i) => Math.min(Math.max(v + move[i], 16), 240)) : at;
    if (cursor) { line(to); look(); }
    at = to;
    find(".digit-said").textContent += move ? "" : cursor ? " Pen down." : " Pen up.";
  });
  const DO = {
    clear() {
      clear();
      paint(seen, Array(64).fill(0));
      table(Array(10).fill(0), -1);
      find(".digit-said").textContent = "Draw a digit.";
    },
    next() {
      const k = next++ % labels.length;
      paint(canvas, digit(k));
      sample = true;
      show(digit(k), `Test digit ${k} is a ${labels[k]}. Draw to begin your own.`);
    },
    all() {
      const found = labels.map((_, k) => best(Array.from(run(prepare(digit(k))).at(-1).data)));
      const right = found.filter((label, k) => label === labels[k]).length;
      bench.dataset.found = found.join("");
      find(".digit-said").textContent = `${right} of ${labels.length} right.`;
    },
  };
  ui.addEventListener("click", (event) => DO[event.target.dataset.do]?.());
  ui.addEventListener("input", () => bits());
  DO.next();
});
