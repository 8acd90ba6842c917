/* Block by block and the rank curve. */

import { button, el, keepFocus } from "../core/dom.js";
import { figure, fixed, megabytes, share } from "../core/format.js";
import { curvePlot } from "./curve.js";
import { SCALES, cutText, pairFigure, shareOf } from "./figures.js";
import { Scale, heatMap } from "./heatmap.js";
import { times } from "./numbers.js";

export class Maps {
    /** @param {import("./view.js").View} view what is known */
    constructor(view) {
        this.view = view;
        this.kind = "shares";
    }

    kinds() {
        const { recipe, pairs } = this.view.report;
        const found = recipe && this.view.report.sources.length > 1 ? [["shares", "Dominance"]] : [];
        found.push(["norm", "Norm"]);
        return pairs.length ? [...found, ["cosine", "Cosine"], ["excess", "Conflict"]] : found;
    }

    map() {
        const kinds = this.kinds();
        if (!kinds.some(([kind]) => kind === this.kind)) this.shown = kinds[0][0];
        else this.shown = this.kind;
        const choose = (kind) => {
            this.kind = kind;
            keepFocus(() => this.mapBox.replaceWith(this.map()));
            const now = this.mapBox.querySelector("[aria-checked=true]");
            if (now) now.focus({ preventScroll: true });
        };
        const step = (event) => {
            const at =
                kinds.findIndex(([kind]) => kind === this.shown) +
                ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0);
            if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
            event.preventDefault();
            choose(kinds[(at + kinds.length) % kinds.length][0]);
        };
        const radios = el(
            "div",
            { class: "lm-choice", role: "radiogroup", "aria-label": "What the map shows", onkeydown: step },
            ...kinds.map(([kind, title]) =>
                button(title, () => choose(kind), {
                    class: "lm-button lm-small",
                    role: "radio",
                    "aria-checked": String(kind === this.shown),
                    tabindex: kind === this.shown ? 0 : -1,
                }),
            ),
        );
        const { said, plot } = this[
            this.shown === "cosine" || this.shown === "excess" ? "pairMap" : "sourceMap"
        ](this.shown);
        this.mapBox = el(
            "div",
            { class: "lm-map" },
            el("div", { class: "lm-line" }, el("b", {}, "Block by block"), radios, el("small", {}, said)),
            plot,
        );
        return this.mapBox;
    }

    blocks() {
        const { sources, recipe, pairs } = this.view.report;
        const found = new Set([
            ...(recipe ? Object.keys(recipe.blocks) : []),
            ...sources.flatMap((source) => Object.keys(source.blocks)),
            ...pairs.flatMap((pair) => Object.keys(pair.blocks)),
        ]);
        const order =
            (this.view.needs.catalog.families[this.view.report.family] || {}).blocks ||
            this.view.needs.grid.columns ||
            [];
        const place = (name) => (order.indexOf(name) < 0 ? order.length : order.indexOf(name));
        return [...found].sort((one, other) => place(one) - place(other));
    }

    sourceMap(kind) {
        const { report } = this.view;
        const { sources, recipe } = report;
        const columns = this.blocks();
        const rows = sources.map((source, index) => ({
            name: this.view.name(index),
            head: el("span", { class: "lm-line" }, this.view.chip(index), el("bdi", {}, source.label)),
        }));
        if (kind === "shares") {
            const values = sources.map((_, index) => columns.map((block) => shareOf(report, index, block)));
            const tell = (line, column) => {
                const out = recipe.blocks[columns[column]];
                return (
                    `${columns[column]}, ${rows[line].name}: ${share(values[line][column], 1)} of ` +
                    `the merge; ${share(out.retention[line])} of what was asked is in; the others ` +
                    `add ${share(out.crosstalk[line])} on its inputs`
                );
            };
            return {
                said: "share of the merge, % of each block",
                plot: heatMap({
                    label: "Share of the merge by block and LoRA",
                    rows,
                    columns,
                    values,
                    scale: SCALES.shares,
                    tell,
                }),
            };
        }
        const heard = (index, block) =>
            (recipe && recipe.heard[block]
                ? recipe.heard[block][index]
                : sources[index].blocks[block]
                  ? sources[index].blocks[block].norm
                  : null) || null;
        const values = sources.map((_, index) => columns.map((block) => heard(index, block)));
        const scale = new Scale(
            0,
            Math.max(1e-12, ...values.flat().filter((value) => value !== null)),
            (value) => figure(value, 2),
        );
        const tell = (line, column) => {
            const own = sources[line].blocks[columns[column]];
            const weight =
                recipe && recipe.weights[columns[column]]
                    ? ` at weight ${figure(recipe.weights[columns[column]][line], 3)}`
                    : "";
            const alone = own
                ? `; alone ${figure(own.norm)}, ${share(own.share, 1)} of its energy, effective rank ` +
                  `${figure(own.effective_rank)}, ${own.modules} modules`
                : "";
            const norm = figure(values[line][column]);
            return `${columns[column]}, ${rows[line].name}: norm ${norm}${weight}${alone}`;
        };
        return {
            said: recipe ? "‖weight × ΔW‖ of each LoRA, no unit" : "‖ΔW‖ of each LoRA, no unit",
            plot: heatMap({ label: "Norm by block and LoRA", rows, columns, values, scale, tell }),
        };
    }

    pairMap(kind) {
        const { pairs } = this.view.report;
        const columns = this.blocks();
        const rows = pairs.map((pair) => ({
            name: `${this.view.letter(pair.first)} and ${this.view.letter(pair.second)}`,
            head: el("span", { class: "lm-line" }, this.view.chip(pair.first), this.view.chip(pair.second)),
        }));
        const values = pairs.map((pair) => columns.map((block) => pairFigure(pair, kind, block)));
        const scale = SCALES[kind];
        const tell = (line, column) => {
            const part = pairs[line].blocks[columns[column]];
            if (kind === "cosine")
                return (
                    `${columns[column]}, ${rows[line].name}: cosine ${fixed(part.cosine, 3)}; ` +
                    `overlap ${times(part.overlap_out, part.chance_out)} × chance in what they ` +
                    `write, ${times(part.overlap_in, part.chance_in)} × in what they read`
                );
            return (
                `${columns[column]}, ${rows[line].name}: signs differ in ${share(part.conflict, 1)} ` +
                `± ${share(part.error, 1)}, the cosine alone brings ${share(part.expected, 1)}`
            );
        };
        const said =
            kind === "cosine"
                ? "−1 opposite, 0 unrelated, 1 the same"
                : "points of sign conflict beyond what the cosine brings, where that is sure; else 0";
        return {
            said,
            plot: heatMap({
                label: kind === "cosine" ? "Cosine by block and pair" : "Excess conflict by block and pair",
                rows,
                columns,
                values,
                scale,
                tell,
            }),
        };
    }

    curve() {
        const { recipe } = this.view.report;
        const points = recipe.curve.map((point) => ({ x: point.rank, y: point.energy, ...point }));
        const tell = (point) =>
            `rank ${point.rank}: ${share(point.energy, 2)} of the energy kept, ${megabytes(point.bytes)}`;
        const pick = (point) => {
            this.view.needs.state.replace({ rank: { mode: "rank", value: point.rank } });
            this.view.needs.say(`The merge will be saved at rank ${point.rank}. Ctrl+Z takes it back.`);
        };
        return el(
            "div",
            { class: "lm-map" },
            el("b", {}, "Energy kept against rank"),
            curvePlot({
                label: "Energy kept against rank",
                across: "Rank of every module",
                up: "Energy kept, % of Σ S²",
                points,
                mark: { x: recipe.rank[1], text: cutText(recipe) },
                tell,
                pick,
            }),
        );
    }
}
