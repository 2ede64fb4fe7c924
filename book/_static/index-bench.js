/* The index bench and the micro table of index-bench.md: plain JavaScript that asks the network for nothing. Jupyter Book loads
   every script of this folder on every page, so this one ends at once where neither figure stands. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const OPERANDS = [
    { name: "α", axes: ["edge", "operation"] },
    { name: "L̃", axes: ["operation", "edge"] },
    { name: "∂w/∂α", axes: ["edge", "operation"] },
  ];
  const CHAPTER = "06-from-trace-to-update.html";
  const LINES = [
    {
      name: "4.49", string: "ei,if,fm->e", link: "#eq-4-49",
      text: "4.49 as printed: the trace, one number per edge. Two slips: e is the free index of α, and i is an operation of its own.",
    },
    {
      name: "slip 1 mended", string: "fi,if,em->e", link: "#is-it-the-coupling",
      text: "4.49 with e and e′ exchanged: the free index is now that of ∂w/∂α, but the operation i of the inner product is still one too many.",
    },
    {
      name: "slip 2 mended", string: "em,mf,fm->e", link: "#is-it-the-coupling",
      text: "4.49 with one operation m: α, L̃ and ∂w/∂α share it, but the free index is still that of α.",
    },
    {
      name: "4.49′", string: "fm,mf,em->em", link: "#eq-4-49-prime",
      text: "4.49′ as derived: the exact coupling C, one number for every entry of α. It is also the correction −ψ ⊛ α of 4.50′, as ψ = −C/α.",
    },
    {
      name: "4.50", string: "em,mf,fk->em", link: "#eq-4-50",
      text: "The correction −ψ ⊛ α of 4.50 as printed: ψ is the same in every row.",
    },
    {
      name: "4.50′", string: "fm,mf,em->em", link: "#eq-4-50-prime",
      text: "The correction −ψ ⊛ α of 4.50′ as derived, with ψ = −C/α: it is C itself, the string of 4.49′.",
    },
    { string: "fm,mf,em->e", link: "#eq-4-49-prime", text: "4.49′ added up over the operations: the exact coupling per edge." },
    {
      string: "em,mf,fm->em", link: "#where-print-and-truth-meet",
      text: "4.50 with its bracket read element by element: right where there is one edge.",
    },
    { string: "ei,if,fm->em", page: "05-trace.html", link: "#eq-4-48", text: "The entries of the tensor of 4.48 that are not zero: column m of slice m." },
  ];

  const element = (tag, { role, label, ...properties } = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    if (role) node.setAttribute("role", role);
    if (label) node.setAttribute("aria-label", label);
    node.append(...children);
    return node;
  };
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const shown = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");

  // One letter an axis. A letter stands for edges or for operations, also where E = M: the book keeps them apart.
  function parse(text) {
    const string = text.replaceAll("→", "->").replace(/\s/g, "");
    const sides = string.split("->");
    if (sides.length !== 2) throw new Error("Write one arrow, ->, between the factors and the letters that stay free.");
    const inputs = sides[0].split(","), output = sides[1], kinds = new Map();
    if (inputs.length !== 3) throw new Error(`Three factors are needed, separated by commas: α, L̃, ∂w/∂α. There are ${inputs.length}.`);
    const foreign = [...sides.join("")].find((letter) => !/[A-Za-z,]/.test(letter));
    if (foreign) throw new Error(`“${foreign}” is no index: an index is one letter, a to z or A to Z.`);
    if (output.includes(",")) throw new Error("There is one result: no comma after the arrow.");
    OPERANDS.forEach(({ name, axes }, which) => {
      const letters = inputs[which];
      if (letters.length !== 2) throw new Error(`${name} has two axes (${axes.join(", ")}); the string gives it ${letters.length} letters.`);
      [...letters].forEach((letter, axis) => {
        const known = kinds.get(letter);
        if (known && known.kind !== axes[axis])
          throw new Error(`“${letter}” counts ${known.kind}s in ${known.name} and ${axes[axis]}s in ${name}: one letter, one meaning.`);
        if (!known) kinds.set(letter, { kind: axes[axis], name });
      });
    });
    [...output].forEach((letter, place) => {
      if (!kinds.has(letter)) throw new Error(`“${letter}” stays free, but no factor carries it.`);
      if (output.indexOf(letter) !== place) throw new Error(`“${letter}” stands twice after the arrow.`);
    });
    const kind = (letter) => kinds.get(letter).kind;
    return { inputs, output, kind, letters: [...kinds.keys()] };
  }

  // The same up to the names of the letters: a, b, c … in the order in which they appear.
  function canonical({ inputs, output, letters }) {
    const rename = (text) => [...text].map((letter) => String.fromCharCode(97 + letters.indexOf(letter))).join("");
    return [inputs.map(rename).join(), rename(output)];
  }

  // Tensors are flat arrays, the last index runs fastest.
  function einsum({ inputs, output, letters }, tensors, size) {
    const stride = (axes, letter) =>
      sum([...axes].map((axis, place) => (axis === letter ? [...axes].slice(place + 1).reduce((n, a) => n * size(a), 1) : 0)));
    const steps = letters.map((letter) => [size(letter), ...[...inputs, output].map((axes) => stride(axes, letter))]);
    const result = new Array([...output].reduce((n, letter) => n * size(letter), 1)).fill(0);
    const walk = (depth, a, l, d, out) => {
      if (depth === steps.length) {
        result[out] += tensors[0][a] * tensors[1][l] * tensors[2][d];
        return;
      }
      const [count, da, dl, dd, dout] = steps[depth];
      for (let i = 0; i < count; i++) walk(depth + 1, a + i * da, l + i * dl, d + i * dd, out + i * dout);
    };
    walk(0, 0, 0, 0, 0);
    return result;
  }

  function generator(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  // α and ∂w/∂α between 0.1 and 1.1, as the book's toys draw them, or of either sign; L̃ between −2 and 2.
  function draw(state, chapter) {
    const { E, M, seed } = state, random = generator(seed * 1000 + E * 10 + M), count = E * M;
    const values = (low, high) => Array.from({ length: count }, () => Math.round(100 * (low + (high - low) * random())) / 100);
    const drawn = { alpha: values(0.1, 1.1), factor: values(-2, 2), dw: values(0.1, 1.1) };
    const { alpha, factor, dw } = seed === 0 && E === chapter.E && M === chapter.M ? chapter : drawn;
    const turned = (positive) => positive.map((value) => (random() < 0.5 && state.signs ? -value : value));
    return [turned(alpha), factor, turned(dw)];
  }

  // A heat map is a table: numbers for every reader, colour for the eye (blue is positive, orange negative).
  function heat(values, columns, caption, scale = Math.max(...values.map(Math.abs))) {
    const body = element("tbody");
    for (let start = 0; start < values.length; start += columns) {
      const row = body.appendChild(element("tr"));
      for (const value of values.slice(start, start + columns)) {
        const cell = row.appendChild(element("td", { className: value < 0 ? "negative" : "", textContent: shown(value) }));
        cell.style.setProperty("--strength", scale ? Math.abs(value) / scale : 0);
        cell.dataset.value = value;
      }
    }
    const table = element("table", { className: "heat" }, element("caption", { textContent: caption }), body);
    return element("div", { className: "heat-frame", tabIndex: 0, role: "region", label: caption }, table);
  }

  function measure(mine, exact) {
    const norm = (x) => Math.sqrt(sum(x.map((v) => v * v)));
    const gap = norm(mine.map((value, i) => value - exact[i]));
    return { error: gap / norm(exact), cosine: sum(mine.map((value, i) => value * exact[i])) / (norm(mine) * norm(exact)) };
  }

  function indexBench(root) {
    const chapter = JSON.parse(root.querySelector("script").textContent);
    const state = { string: LINES[0].string, E: chapter.E, M: chapter.M, signs: false, seed: 0 };
    const field = element("input", {
      id: "bench-string", type: "text", value: state.string, spellcheck: false, autocomplete: "off", autocapitalize: "off", maxLength: 40,
    });
    field.setAttribute("aria-describedby", "bench-verdict");
    const verdict = element("div", { id: "bench-verdict", className: "bench-verdict", role: "status" });
    const maps = element("div", { className: "heat-row" }), numbers = element("div", { className: "heat-row" });
    const buttons = LINES.filter((line) => line.name).map((line) => {
      const button = element("button", { type: "button", textContent: line.name, title: line.string });
      button.addEventListener("click", () => {
        field.value = line.string;
        show(line);
      });
      return button;
    });
    const slider = (name, what, most) => {
      const input = element("input", { type: "range", min: 1, max: most, value: state[name], id: `bench-${name}` });
      const output = element("output", { textContent: state[name], htmlFor: input.id });
      input.addEventListener("input", () => {
        output.textContent = state[name] = Number(input.value);
        show();
      });
      return element("label", {}, `${name}, ${what}: `, output, input);
    };
    const signs = element("select", { id: "bench-signs" }, element("option", { textContent: "positive" }), element("option", { textContent: "of either sign" }));
    signs.addEventListener("change", () => {
      state.signs = signs.selectedIndex === 1;
      show();
    });
    const again = element("button", { type: "button", textContent: "other numbers" });
    again.addEventListener("click", () => {
      state.seed += 1;
      show();
    });
    field.addEventListener("input", () => show());

    function show(chosen) {
      const { E, M } = state, tensors = draw(state, chapter), [alpha, factor, dw] = tensors;
      const tables = [heat(alpha, M, "α (E, M)"), heat(factor, E, "L̃ (M, E)"), heat(dw, M, "∂w/∂α (E, M)")];
      numbers.replaceChildren(...tables);
      let parsed;
      try {
        parsed = parse(field.value);
      } catch (problem) {
        field.setAttribute("aria-invalid", "true");
        maps.replaceChildren();
        verdict.replaceChildren(element("p", { className: "bench-error", textContent: problem.message }));
        return;
      }
      field.removeAttribute("aria-invalid");
      const size = (letter) => (parsed.kind(letter) === "edge" ? E : M);
      const { output } = parsed, mine = einsum(parsed, tensors, size);
      const kinds = [...output].map((letter) => (parsed.kind(letter) === "edge" ? "E" : "M")).join("");
      const target = { EM: "fm,mf,em->em", ME: "fm,mf,em->me", E: "fm,mf,em->e", M: "fm,mf,em->m", "": "fm,mf,em->" }[kinds];
      const lines = [named(parsed, chosen), reading(parsed), shape(output, kinds, size)];
      const columns = output.length > 1 ? size(output[1]) : 1, pictures = [];
      if (target !== undefined) {
        const wanted = parse(target), exact = einsum(wanted, tensors, (letter) => (wanted.kind(letter) === "edge" ? E : M));
        const { error, cosine } = measure(mine, exact), scale = Math.max(...[...mine, ...exact].map(Math.abs));
        const what = { EM: "C", ME: "C, transposed", E: "C added up over m", M: "C added up over e", "": "C added up" }[kinds];
        pictures.push(heat(mine, columns, "your string", scale), heat(exact, columns, `exact: ${what}`, scale));
        lines.push(compared(error, cosine, what));
        if (kinds === "EM") pictures.push(heat(mine.map((value, i) => -value / alpha[i]), M, "ψ = −(your string) / α"));
      } else {
        if (output.length === 2) pictures.push(heat(mine, columns, "your string"));
        lines.push(element("p", { textContent: "The coupling has no such shape: at most one edge and one operation stay free in it." }));
      }
      verdict.replaceChildren(...lines);
      maps.replaceChildren(...pictures);
    }

    function named(parsed, chosen) {
      const [inputs, output] = canonical(parsed);
      const forms = LINES.map((line) => [line, ...canonical(parse(line.string))]);
      const found = chosen || forms.find(([, factors, free]) => factors === inputs && free === output)?.[0];
      if (found) {
        const link = element("a", { href: (found.page || CHAPTER) + found.link, textContent: "where it stands" });
        return element("p", { className: "bench-line" }, `${found.text} (`, link, ")");
      }
      const near = forms.find(([, factors]) => factors === inputs)?.[0];
      const text = near ? `The factors of “${near.name}” with other letters free: no line of the book.` : "No line of the book.";
      return element("p", { className: "bench-line", textContent: text });
    }

    function reading({ inputs, output, letters, kind }) {
      const bound = letters.filter((letter) => !output.includes(letter));
      const product = OPERANDS.map(({ name }, which) => `${name}[${[...inputs[which]].join(", ")}]`).join(" · ");
      const names = bound.map((letter) => `${letter} (${kind(letter)})`).join(", ");
      const line = `[${[...output].join(", ")}] = ${bound.length ? `Σ over ${bound.join(", ")} of ` : ""}${product}.`;
      return element("p", { textContent: bound.length ? `${line} Summed: ${names}.` : `${line} Nothing is summed.` });
    }

    function shape(output, kinds, size) {
      const sizes = [...output].map(size).join(", ");
      return element("p", {}, "Shape ", element("b", { id: "bench-shape", textContent: `(${[...kinds].join(", ")}) = (${sizes})` }), ".");
    }

    function compared(error, cosine, what) {
      const equal = error < 1e-12, line = element("p", {}, `Against ${what}: `);
      const number = (id, value, text) => {
        const node = element("b", { id, textContent: text });
        node.dataset.value = value;
        return node;
      };
      if (!Number.isFinite(error)) return element("p", { textContent: "The exact coupling is 0 here: no relative error." });
      line.append("relative error ", number("bench-error", error, equal ? "0" : error < 0.005 ? error.toExponential(0) : shown(error)));
      line.append(", cosine ", number("bench-cosine", cosine, Number.isFinite(cosine) ? shown(cosine) : "undefined"));
      line.append(equal ? ": equal." : ".");
      return line;
    }

    root.replaceChildren(
      element("label", { htmlFor: field.id, className: "bench-string" }, "α, L̃, ∂w/∂α → correction", field),
      element("div", { className: "bench-buttons", role: "group", label: "Lines of the book" }, ...buttons),
      element("div", { className: "bench-controls" }, slider("E", "edges", 14), slider("M", "operations", 8), element("label", {}, "α and ∂w/∂α: ", signs), again),
      verdict,
      maps,
      element("details", {}, element("summary", { textContent: "The numbers behind it" }), numbers),
    );
    show();
  }

  function microTable(root) {
    const { operations, edges, tables } = JSON.parse(root.querySelector("script").textContent);
    const selects = edges.map((edge, place) => {
      const options = operations.map((name) => element("option", { textContent: name }));
      const select = element("select", { id: `micro-${place}` }, ...options);
      select.addEventListener("change", show);
      return select;
    });
    const data = element("select", { id: "micro-data" }, ...Object.keys(tables).map((name) => element("option", { textContent: name })));
    data.addEventListener("change", show);
    const choose = (cell) => {
      selects.forEach((select, place) => {
        select.selectedIndex = Math.floor(cell / operations.length ** (edges.length - 1 - place)) % operations.length;
      });
      show();
    };
    const best = element("button", { type: "button", textContent: "best 1-bit cell" });
    best.addEventListener("click", () => {
      const values = tables[data.value].accuracy[0];
      choose(values.indexOf(Math.max(...values)));
    });
    const answer = element("div", { role: "status", className: "bench-verdict" });
    const pictures = [...root.querySelectorAll("svg")];
    for (const picture of pictures) {
      picture.addEventListener("click", (event) => {
        const distance = (dot) => {
          const box = dot.getBoundingClientRect();
          return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        };
        const dots = [...picture.querySelectorAll("circle[data-cell]")].map((dot) => [distance(dot), dot]);
        choose(Number(dots.reduce((a, b) => (b[0] < a[0] ? b : a))[1].dataset.cell));
      });
    }
    function show() {
      const cell = selects.reduce((number, select) => number * operations.length + select.selectedIndex, 0);
      const table = tables[data.value];
      const rows = [1, 32].map((bits, which) => {
        const all = table.accuracy[which], mine = all[cell];
        const better = all.filter((value) => value > mine).length, equal = all.filter((value) => value === mine).length - 1;
        const percentile = (100 * (all.length - 1 - better - equal / 2)) / (all.length - 1);
        const size = table.size[which][cell];
        const row = element("tr", {}, element("th", { scope: "row", textContent: `${bits} bit` }));
        const texts = [`${shown(100 * mine, 1)} %`, `${better + 1}`, shown(percentile, 1), size.toLocaleString("en")];
        row.append(...texts.map((text) => element("td", { textContent: text })));
        Object.assign(row.dataset, { accuracy: mine, rank: better + 1, percentile, size });
        return row;
      });
      const head = ["", "accuracy", "rank", "percentile", "size, bits"];
      answer.replaceChildren(
        element("p", { textContent: `Cell ${cell}: ${selects.map((select) => select.value).join(", ")}` }),
        element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { textContent: text })))), element("tbody", {}, ...rows)),
      );
      for (const picture of pictures) {
        const figure = picture.closest("figure");
        figure.hidden = figure.dataset.table !== data.value;
        const dot = picture.querySelector(`circle[data-cell="${cell}"]`), ring = picture.querySelector(".ring");
        for (const name of ["cx", "cy"]) ring.setAttribute(name, dot.getAttribute(name));
        ring.setAttribute("visibility", "visible");
      }
    }
    const labels = edges.map(([from, to], place) => element("label", {}, `edge ${from} → ${to}: `, selects[place]));
    root.prepend(element("div", { className: "bench-controls" }, ...labels, element("label", {}, "data: ", data), best), answer);
    choose(0);
    best.click();
  }

  const figures = [["index-bench", indexBench], ["micro-table", microTable]];
  for (const [id, make] of figures) {
    const root = document.getElementById(id);
    if (root) make(root);
  }
});
