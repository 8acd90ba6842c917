/* A curve whose every point can be reached by mouse and by keyboard. */

import { button, el } from "../core/dom.js";

const svg = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, String(value));
    node.append(...children);
    return node;
};

/* a round step that cuts 0…most into about count pieces */
const nice = (most, count) => {
    const rough = most / count;
    const base = 10 ** Math.floor(Math.log10(rough));
    return base * [1, 2, 5, 10].find((factor) => factor * base >= rough);
};

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [430, 230, 66, 14, 10, 44];

/**
 * Where a point lies in the picture.
 * @param {number} x
 * @param {number} y 0…1
 * @param {number} most the largest x
 * @returns {[number, number]}
 */
const placed = (x, y, most) => [
    LEFT + ((WIDTH - LEFT - RIGHT) * x) / most,
    HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y,
];

/**
 * A curve as a polyline's points, from 0.
 * @param {{x: number, y: number}[]} points with x ascending and y in 0…1
 */
export const linePoints = (points) =>
    [{ x: 0, y: 0 }, ...points]
        .map((point) =>
            placed(point.x, point.y, points.at(-1).x)
                .map((at) => at.toFixed(1))
                .join(","),
        )
        .join(" ");

/**
 * A curve that one moves along.
 * @param {object} what
 * @param {string} what.label
 * @param {string} what.across what x is
 * @param {string} what.up what y is
 * @param {({x: number, y: number} & Record<string, any>)[]} what.points with x ascending and y in 0…1
 * @param {{x: number, text: string}} [what.mark]
 * @param {(point: any) => string} what.tell the sentence of a point
 * @param {(point: any) => void} what.pick what to do with one
 * @returns {HTMLElement}
 */
export const curvePlot = ({ label, across, up, points, mark, tell, pick }) => {
    const [width, height, left, right, top, bottom] = [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM];
    const most = points[points.length - 1].x;
    const toX = (x) => placed(x, 0, most)[0];
    const toY = (y) => placed(0, y, most)[1];
    const text = (x, y, content, anchor, extra) =>
        svg("text", { x, y, "text-anchor": anchor, ...extra }, content);
    const drawing = [];
    for (let y = 0; y <= 1.001; y += 0.2)
        drawing.push(
            svg("line", { class: "lm-plot-grid", x1: left, x2: width - right, y1: toY(y), y2: toY(y) }),
            text(left - 6, toY(y) + 4, `${Math.round(100 * y)} %`, "end"),
        );
    for (let x = 0; x <= most * 1.001; x += Math.max(1, nice(most, 6)))
        drawing.push(text(toX(x), height - bottom + 16, String(Math.round(x)), "middle"));
    drawing.push(
        text((left + width - right) / 2, height - 6, across, "middle"),
        text(14, (top + height - bottom) / 2, up, "middle", {
            transform: `rotate(-90 14 ${(top + height - bottom) / 2})`,
        }),
    );
    drawing.push(
        svg("polyline", {
            class: "lm-plot-line",
            points: linePoints(points),
        }),
    );
    if (mark) {
        const x = toX(Math.min(mark.x, most));
        const end = x > width * 0.6;
        drawing.push(
            svg("line", { class: "lm-plot-mark", x1: x, x2: x, y1: top, y2: height - bottom }),
            text(x + (end ? -6 : 6), height - bottom - 10, mark.text, end ? "end" : "start"),
        );
    }
    const dot = svg("circle", { class: "lm-plot-dot", r: 4, visibility: "hidden" });
    const readout = el(
        "p",
        { class: "lm-readout", "aria-live": "polite" },
        "Point at the curve, or move along it with the arrow keys.",
    );
    const node = svg(
        "svg",
        {
            class: "lm-curve",
            viewBox: `0 0 ${width} ${height}`,
            role: "slider",
            tabindex: 0,
            "aria-label": label,
            "aria-valuemin": points[0].x,
            "aria-valuemax": most,
            "aria-valuenow": mark ? mark.x : most,
            "aria-valuetext": mark ? mark.text : "",
            "aria-keyshortcuts": "Enter",
        },
        ...drawing,
        dot,
    );
    let at = Math.max(
        0,
        points.findIndex((point) => mark && point.x >= mark.x),
    );
    const show = (index) => {
        at = Math.min(points.length - 1, Math.max(0, index));
        const point = points[at];
        for (const [name, value] of [
            ["cx", toX(point.x)],
            ["cy", toY(point.y)],
            ["visibility", "visible"],
        ])
            dot.setAttribute(name, value);
        node.setAttribute("aria-valuenow", point.x);
        node.setAttribute("aria-valuetext", tell(point));
        readout.textContent = tell(point);
    };
    node.addEventListener("mousemove", (event) => {
        const box = node.getBoundingClientRect();
        const x = ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * most;
        show(
            points.reduce(
                (best, point, index) => (Math.abs(point.x - x) < Math.abs(points[best].x - x) ? index : best),
                0,
            ),
        );
    });
    node.addEventListener("focus", () => show(at));
    node.addEventListener("keydown", (event) => {
        const next = {
            ArrowLeft: at - 1,
            ArrowDown: at - 1,
            ArrowRight: at + 1,
            ArrowUp: at + 1,
            Home: 0,
            End: points.length - 1,
        }[event.key];
        if (next !== undefined) show(next);
        else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) pick(points[at]);
        else return;
        event.preventDefault();
        event.stopPropagation();
    });
    node.addEventListener("click", () => node.focus());
    const use = button("Save at this rank", () => pick(points[at]), {
        class: "lm-button lm-small",
        title: "Sets the rank of the merge to the one shown; Ctrl+Z takes it back",
    });
    return el("div", { class: "lm-plot" }, node, el("div", { class: "lm-line" }, use, readout));
};
