"use strict";

/* Plots of the analysis: heat maps and curves whose every number can be reached by mouse and by keyboard. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el } = space;
    /* even steps of lightness, the same to almost everyone; and blue against orange around white */
    const SEQUENTIAL = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
    const DIVERGING = ["#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806"];

    const svg = (tag, attributes, ...children) => {
        const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, String(value));
        node.append(...children);
        return node;
    };

    const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

    /* black or white, whichever has more contrast (WCAG's relative luminance) */
    const ink = (rgb) => {
        const [red, green, blue] = rgb.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
    };

    const between = (colours, place) => {
        const step = Math.min(1, Math.max(0, place)) * (colours.length - 1);
        const first = Math.min(Math.floor(step), colours.length - 2);
        const [from, to] = [parts(colours[first]), parts(colours[first + 1])];
        return from.map((value, at) => Math.round(value + (to[at] - value) * (step - first)));
    };

    /* numbers from low to high in colours; write makes what stands in a cell, unit what stands behind it in a sentence */
    class Scale {
        constructor(low, high, write, unit, diverging) {
            Object.assign(this, { low, high, write, unit: unit || "" });
            this.colours = diverging ? DIVERGING : SEQUENTIAL;
        }

        style(value) {
            const rgb = between(this.colours, this.high > this.low ? (value - this.low) / (this.high - this.low) : 0);
            return `background:rgb(${rgb.join(",")});color:${ink(rgb)}`;
        }

        key() {
            const text = (value) => `${this.write(value)}${this.unit}`;
            return el("div", { class: "lm-key" }, text(this.low), el("span", { class: "lm-key-bar", style: `background:linear-gradient(90deg,${this.colours.join(",")})` }), text(this.high));
        }
    }

    /* rows: [{head: node, name}], columns: names, values: [row][column] or null, tell(row, column) -> the sentence of a cell */
    const heatMap = ({ label, rows, columns, values, scale, tell, hint }) => {
        const readout = el("p", { class: "lm-readout", "aria-live": "polite" }, hint || "Point at a cell, or move with the arrow keys.");
        const cells = rows.map((row, line) => columns.map((column, at) => {
            const value = values[line][at];
            const known = value !== null && value !== undefined;
            const said = known ? tell(line, at) : `${row.name}, ${column}: nothing there`;
            return el("div", { class: `lm-heat-cell${known ? "" : " lm-heat-none"}`, role: "gridcell", tabindex: line || at ? -1 : 0, "aria-label": said, title: said, style: known ? scale.style(value) : "" }, known ? scale.write(value) : "");
        }));
        const show = (event) => {
            const cell = event.target.closest(".lm-heat-cell");
            if (cell) readout.textContent = cell.getAttribute("aria-label");
        };
        const move = (event) => {
            const line = cells.findIndex((row) => row.includes(event.target));
            if (line < 0) return;
            const at = cells[line].indexOf(event.target);
            const next = { ArrowLeft: [line, at - 1], ArrowRight: [line, at + 1], ArrowUp: [line - 1, at], ArrowDown: [line + 1, at], Home: [line, 0], End: [line, columns.length - 1] }[event.key];
            if (!next || !cells[next[0]] || !cells[next[0]][next[1]]) return;
            event.preventDefault();
            event.stopPropagation();
            event.target.tabIndex = -1;
            cells[next[0]][next[1]].tabIndex = 0;
            cells[next[0]][next[1]].focus();
        };
        const grid = el("div", { class: `lm-heat${columns.length > 24 ? " lm-heat-many" : ""}`, role: "grid", "aria-label": label, style: `grid-template-columns: max-content repeat(${columns.length}, minmax(${columns.length > 24 ? 24 : 30}px, 1fr))`, onmouseover: show, onfocusin: show, onkeydown: move },
            el("div", { class: "lm-contents", role: "row" }, el("div", { role: "columnheader" }), ...columns.map((name) => el("div", { class: "lm-heat-column", role: "columnheader" }, name))),
            ...rows.map((row, line) => el("div", { class: "lm-contents", role: "row" }, el("div", { class: "lm-heat-head", role: "rowheader", title: row.name }, row.head), ...cells[line])));
        return el("div", { class: "lm-plot" }, grid, el("div", { class: "lm-line" }, scale.key(), readout));
    };

    /* a round step that cuts 0…most into about count pieces */
    const nice = (most, count) => {
        const rough = most / count;
        const base = 10 ** Math.floor(Math.log10(rough));
        return base * [1, 2, 5, 10].find((factor) => factor * base >= rough);
    };

    /* points: [{x, y}] with x ascending and y in 0…1; mark: {x, text}; tell(point) -> sentence; pick(point): what to do with one */
    const curve = ({ label, across, up, points, mark, tell, pick }) => {
        const [width, height, left, right, top, bottom] = [430, 230, 66, 14, 10, 44];
        const most = points[points.length - 1].x;
        const toX = (x) => left + ((width - left - right) * x) / most;
        const toY = (y) => height - bottom - (height - bottom - top) * y;
        const text = (x, y, content, anchor, extra) => svg("text", { x, y, "text-anchor": anchor, ...extra }, content);
        const drawing = [];
        for (let y = 0; y <= 1.001; y += 0.2) drawing.push(svg("line", { class: "lm-plot-grid", x1: left, x2: width - right, y1: toY(y), y2: toY(y) }), text(left - 6, toY(y) + 4, `${Math.round(100 * y)} %`, "end"));
        for (let x = 0; x <= most * 1.001; x += Math.max(1, nice(most, 6))) drawing.push(text(toX(x), height - bottom + 16, String(Math.round(x)), "middle"));
        drawing.push(text((left + width - right) / 2, height - 6, across, "middle"), text(14, (top + height - bottom) / 2, up, "middle", { transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }));
        drawing.push(svg("polyline", { class: "lm-plot-line", points: [{ x: 0, y: 0 }, ...points].map((point) => `${toX(point.x).toFixed(1)},${toY(point.y).toFixed(1)}`).join(" ") }));
        if (mark) {
            const x = toX(Math.min(mark.x, most));
            const end = x > width * 0.6;
            drawing.push(svg("line", { class: "lm-plot-mark", x1: x, x2: x, y1: top, y2: height - bottom }), text(x + (end ? -6 : 6), height - bottom - 10, mark.text, end ? "end" : "start"));
        }
        const dot = svg("circle", { class: "lm-plot-dot", r: 4, visibility: "hidden" });
        const readout = el("p", { class: "lm-readout", "aria-live": "polite" }, "Point at the curve, or move along it with the arrow keys.");
        const node = svg("svg", { class: "lm-curve", viewBox: `0 0 ${width} ${height}`, role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": points[0].x, "aria-valuemax": most, "aria-valuenow": mark ? mark.x : most, "aria-valuetext": mark ? mark.text : "", "aria-keyshortcuts": "Enter" }, ...drawing, dot);
        let at = Math.max(0, points.findIndex((point) => mark && point.x >= mark.x));
        const show = (index) => {
            at = Math.min(points.length - 1, Math.max(0, index));
            const point = points[at];
            for (const [name, value] of [["cx", toX(point.x)], ["cy", toY(point.y)], ["visibility", "visible"]]) dot.setAttribute(name, value);
            node.setAttribute("aria-valuenow", point.x);
            node.setAttribute("aria-valuetext", tell(point));
            readout.textContent = tell(point);
        };
        node.addEventListener("mousemove", (event) => {
            const box = node.getBoundingClientRect();
            const x = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * most;
            show(points.reduce((best, point, index) => (Math.abs(point.x - x) < Math.abs(points[best].x - x) ? index : best), 0));
        });
        node.addEventListener("focus", () => show(at));
        node.addEventListener("keydown", (event) => {
            const next = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: points.length - 1 }[event.key];
            if (next !== undefined) show(next);
            else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) pick(points[at]);
            else return;
            event.preventDefault();
            event.stopPropagation();
        });
        node.addEventListener("click", () => node.focus());
        const use = space.button("Save at this rank", () => pick(points[at]), { class: "lm-button lm-small", title: "Sets the rank of the merge to the one shown; Ctrl+Z takes it back" });
        return el("div", { class: "lm-plot" }, node, el("div", { class: "lm-line" }, use, readout));
    };

    /* a report page in the theme of the tab around it; on its own it follows the system's */
    space.themed = (html) => html.replace('<html lang="en">', `<html lang="en" class="${document.querySelector(".dark #lora_merge_root") ? "dark" : "light"}">`);

    space.plots = { Scale, heatMap, curve };

    /* numbers as a table shows them; what is not known is a dash */
    space.figure = (value, digits = 3) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits))));
    /* with so many decimals, and without a minus before nothing */
    space.fixed = (value, digits) => (value === null || value === undefined ? "–" : (Math.round(value * 10 ** digits) / 10 ** digits + 0).toFixed(digits));
    space.share = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
    space.figures = (head, rows, label) =>
        el("div", { class: "lm-scroll" }, el("table", { class: "lm-numbers", "aria-label": label },
            el("thead", {}, el("tr", {}, ...head.map(([title, why]) => el("th", { scope: "col", title: why }, title)))),
            el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => (cell instanceof Node && cell.tagName === "TD" ? cell : el("td", {}, cell))))))));
})();
