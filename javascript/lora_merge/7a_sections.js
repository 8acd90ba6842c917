"use strict";

/* The sections of the analysis: block by block, rank curve, pairs, and tables of what was measured. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button, figure, fixed, share } = space;

    class Sections {
        /* ------------------------------------------------------------ plots */

        kinds() {
            const { recipe, pairs } = this.report;
            const found = recipe && this.report.sources.length > 1 ? [["shares", "Dominance"]] : [];
            found.push(["norm", "Norm"]);
            return pairs.length ? [...found, ["cosine", "Cosine"], ["excess", "Conflict"]] : found;
        }

        map() {
            const kinds = this.kinds();
            if (!kinds.some(([kind]) => kind === this.kind)) this.shown = kinds[0][0];
            else this.shown = this.kind;
            const choose = (kind) => {
                this.kind = kind;
                space.keepFocus(() => this.mapBox.replaceWith(this.map()));
                const now = this.mapBox.querySelector("[aria-checked=true]");
                if (now) now.focus({ preventScroll: true });
            };
            const step = (event) => {
                const at = kinds.findIndex(([kind]) => kind === this.shown) + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0);
                if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
                event.preventDefault();
                choose(kinds[(at + kinds.length) % kinds.length][0]);
            };
            const radios = el("div", { class: "lm-choice", role: "radiogroup", "aria-label": "What the map shows", onkeydown: step },
                ...kinds.map(([kind, title]) => button(title, () => choose(kind), { class: "lm-button lm-small", role: "radio", "aria-checked": String(kind === this.shown), tabindex: kind === this.shown ? 0 : -1 })));
            const { said, plot } = this[this.shown === "cosine" || this.shown === "excess" ? "pairMap" : "sourceMap"](this.shown);
            this.mapBox = el("div", { class: "lm-map" }, el("div", { class: "lm-line" }, el("b", {}, "Block by block"), radios, el("small", {}, said)), plot);
            return this.mapBox;
        }

        blocks() {
            const { sources, recipe, pairs } = this.report;
            const found = new Set([...(recipe ? Object.keys(recipe.blocks) : []), ...sources.flatMap((source) => Object.keys(source.blocks)), ...pairs.flatMap((pair) => Object.keys(pair.blocks))]);
            const order = (this.app.known.families[this.report.family] || {}).blocks || this.app.grid.columns || [];
            const place = (name) => (order.indexOf(name) < 0 ? order.length : order.indexOf(name));
            return [...found].sort((one, other) => place(one) - place(other));
        }

        sourceMap(kind) {
            const { sources, recipe } = this.report;
            const columns = this.blocks();
            const rows = sources.map((source, index) => ({ name: this.name(index), head: el("span", { class: "lm-line" }, this.chip(index), el("bdi", {}, source.label)) }));
            if (kind === "shares") {
                const at = (index, block) => (recipe.blocks[block] && recipe.blocks[block].shares.some(Boolean) ? recipe.blocks[block].shares[index] : null);
                const values = sources.map((_, index) => columns.map((block) => at(index, block)));
                const scale = new space.plots.Scale(0, 1, (value) => String(Math.round(100 * value)), " %");
                const tell = (line, column) => {
                    const out = recipe.blocks[columns[column]];
                    return `${columns[column]}, ${rows[line].name}: ${share(values[line][column], 1)} of the merge; ${share(out.retention[line])} of what was asked is in; the others add ${share(out.crosstalk[line])} on its inputs`;
                };
                return { said: "share of the merge, % of each block", plot: space.plots.heatMap({ label: "Share of the merge by block and LoRA", rows, columns, values, scale, tell }) };
            }
            const heard = (index, block) => (recipe && recipe.heard[block] ? recipe.heard[block][index] : sources[index].blocks[block] ? sources[index].blocks[block].norm : null) || null;
            const values = sources.map((_, index) => columns.map((block) => heard(index, block)));
            const scale = new space.plots.Scale(0, Math.max(1e-12, ...values.flat().filter((value) => value !== null)), (value) => figure(value, 2));
            const tell = (line, column) => {
                const own = sources[line].blocks[columns[column]];
                const weight = recipe && recipe.weights[columns[column]] ? ` at weight ${figure(recipe.weights[columns[column]][line], 3)}` : "";
                return `${columns[column]}, ${rows[line].name}: norm ${figure(values[line][column])}${weight}${own ? `; alone ${figure(own.norm)}, ${share(own.share, 1)} of its energy, effective rank ${figure(own.effective_rank)}, ${own.modules} modules` : ""}`;
            };
            return { said: recipe ? "‖weight × ΔW‖ of each LoRA, no unit" : "‖ΔW‖ of each LoRA, no unit", plot: space.plots.heatMap({ label: "Norm by block and LoRA", rows, columns, values, scale, tell }) };
        }

        pairMap(kind) {
            const { pairs } = this.report;
            const columns = this.blocks();
            const rows = pairs.map((pair) => ({ name: `${this.letter(pair.first)} and ${this.letter(pair.second)}`, head: el("span", { class: "lm-line" }, this.chip(pair.first), this.chip(pair.second)) }));
            const excess = (part) => (part.excess === null ? null : Math.abs(part.excess) > 3 * part.error ? 100 * part.excess : 0);
            const value = (part) => (part === undefined ? null : kind === "cosine" ? part.cosine : excess(part));
            const values = pairs.map((pair) => columns.map((block) => value(pair.blocks[block])));
            const short = (number) => (number ? String(Number(number.toFixed(kind === "cosine" ? 2 : 1))).replace("0.", ".") : "0");
            const most = kind === "cosine" ? 1 : 10;
            const scale = new space.plots.Scale(-most, most, short, kind === "cosine" ? "" : " points", true);
            const tell = (line, column) => {
                const part = pairs[line].blocks[columns[column]];
                if (kind === "cosine") return `${columns[column]}, ${rows[line].name}: cosine ${fixed(part.cosine, 3)}; overlap ${this.times(part.overlap_out, part.chance_out)} × chance in what they write, ${this.times(part.overlap_in, part.chance_in)} × in what they read`;
                return `${columns[column]}, ${rows[line].name}: signs differ in ${share(part.conflict, 1)} ± ${share(part.error, 1)}, the cosine alone brings ${share(part.expected, 1)}`;
            };
            const said = kind === "cosine" ? "−1 opposite, 0 unrelated, 1 the same" : "points of sign conflict beyond what the cosine brings, where that is sure; else 0";
            return { said, plot: space.plots.heatMap({ label: kind === "cosine" ? "Cosine by block and pair" : "Excess conflict by block and pair", rows, columns, values, scale, tell }) };
        }

        times(value, chance) {
            return chance ? fixed(value / chance, 1) : "–";
        }

        curve() {
            const { recipe } = this.report;
            const [least, most] = recipe.rank;
            const cut = `${least === most ? `rank ${most}` : `rank ${least} to ${most}`}: ${share(1 - recipe.error ** 2, 1)} kept, ${space.megabytes(recipe.bytes)}`;
            const points = recipe.curve.map((point) => ({ x: point.rank, y: point.energy, ...point }));
            const tell = (point) => `rank ${point.rank}: ${share(point.energy, 2)} of the energy kept, ${space.megabytes(point.bytes)}`;
            const pick = (point) => {
                this.app.state.replace({ rank: { mode: "rank", value: point.rank } });
                this.app.say(`The merge will be saved at rank ${point.rank}. Ctrl+Z takes it back.`);
            };
            return el("div", { class: "lm-map" }, el("b", {}, "Energy kept against rank"), space.plots.curve({ label: "Energy kept against rank", across: "Rank of every module", up: "Energy kept, % of Σ S²", points, mark: { x: most, text: cut }, tell, pick }));
        }

        /* ------------------------------------------------------------ tables */

        pairs() {
            const head = [["Pair"], ["What they are"], ["Cosine", "0 ± 0.02 for unrelated LoRAs"], ["Overlap × chance", "of what they write / of what they read; 1 for unrelated LoRAs"], ["Signs differ", "50 % by chance alone, which is no conflict"], ["beyond the cosine", "0 for unrelated LoRAs; ± is one standard error"], ["Same start", "cosine of the stored down projections; near 0 unless both began from one seed"]];
            const rows = this.report.pairs.map((pair) => {
                const part = pair.whole;
                return [el("span", { class: "lm-pair" }, this.chip(pair.first), this.chip(pair.second)), el("span", { title: pair.reason }, pair.relation), fixed(part.cosine, 3), `${this.times(part.overlap_out, part.chance_out)} / ${this.times(part.overlap_in, part.chance_in)}`,
                    share(part.conflict, 1), part.excess === null ? "–" : `${fixed(100 * part.excess, 1)} ± ${(100 * part.error).toFixed(1)} points`, fixed(pair.start, 2)];
            });
            return el("div", { class: "lm-map" }, el("b", {}, "Pairs"), space.figures(head, rows, "Pairs"), el("small", {}, "Unrelated LoRAs: cosine 0, overlap 1 × chance, signs differing in 50 %: chance, not conflict."));
        }

        sources() {
            const head = [["LoRA"], ["Norm", "‖ΔW‖, no unit"], ["Effective / stable rank"], ["Rank for 90 / 95 / 99 / 99.9 %", "of its energy"], ["Text encoders", "share of its energy"], ["ΔW mean ± std"], ["sampled least … most"], ["fp16 headroom", "by how much its numbers could grow"], ["Merge / it", "‖merge‖ beside ‖ΔW‖ at ratio 1"]];
            const rows = this.report.sources.map((source, index) => {
                const part = source.whole;
                const to = this.report.recipe ? this.report.recipe.whole.to_source[index] : null;
                return [el("span", { class: "lm-line" }, this.chip(index), el("bdi", {}, source.label)), figure(part.norm), `${figure(part.effective_rank, 2)} / ${figure(part.stable_rank, 2)}`, Object.entries(part.ranks).sort((one, other) => Number(one[0]) - Number(other[0])).map(([, rank]) => rank).join(" / "),
                    share(source.encoder), `${figure(part.mean, 2)} ± ${figure(part.std, 2)}`, `${figure(part.low, 2)} … ${figure(part.high, 2)}`, source.headroom === null ? "–" : source.headroom > 1000 ? "> 1000 ×" : `${figure(source.headroom, 2)} ×`, figure(to, 3)];
            });
            return space.figures(head, rows, "LoRAs in numbers");
        }

        training() {
            const { rows } = this.report.training;
            const head = [[""], ...this.report.sources.map((source, index) => [this.name(index)])];
            return space.figures(head, rows.filter((row) => row.values.some(Boolean)).map((row) => [row.title, ...row.values.map((value) => el("td", { class: row.differs ? "lm-differs" : "" }, el("bdi", {}, value || "–")))]), "Training");
        }

        methods() {
            const head = [["Method"], ["Strength / sum"], ["Cosine to the sum"], ["Of each is in", "retention"], ["Others on its inputs", "what the others add to each one's own work"], ["Kept as a LoRA", "of the energy"], ["Modules", "looked at"], [""]];
            const each = (values) => values.map((value) => share(value)).join(" / ");
            const rows = this.report.methods.map((row) => [row.chosen ? el("b", {}, row.title) : row.title, fixed(row.to_sum, 2), fixed(row.cosine, 3), each(row.retention), each(row.crosstalk), share(row.kept), String(row.seen),
                row.chosen ? "chosen" : button("Use", () => this.apply({ title: row.title, apply: { method: row.name } }), { class: "lm-button lm-small", "aria-label": `Use the method ${row.title}` })]);
            return el("div", {}, space.figures(head, rows, "Methods"), button("Carry out the number-by-number ones, too", () => this.run(true, true), { class: "lm-button lm-small", title: "TIES, DARE and their kin: seconds each" }));
        }

        /* ------------------------------------------------------------ helper, export, advice */

        wrong() {
            const { symptoms } = this.report;
            const choose = (value) => {
                this.choice = value;
                const found = symptoms.find((item) => item.id === value);
                answer.replaceChildren(...(found ? [el("ul", { class: "lm-said" }, ...found.says.map((text) => el("li", { class: "lm-info" }, text))), found.tries.length ? el("ul", { class: "lm-said", "aria-label": "What to try" }, ...found.tries.map((item) => this.item(item))) : el("p", { class: "lm-dim" }, "Nothing to click: get the file again, or use LoRAs of one base family.")] : []));
            };
            const answer = el("div", { class: "lm-panel", "aria-live": "polite" });
            const pick = space.select([["", "What is wrong with the pictures? …"], ...symptoms.map((item) => [item.id, item.title])], this.choice || "", choose, { "aria-label": "What is wrong?" });
            choose(this.choice || "");
            return el("div", { class: "lm-map" }, el("div", { class: "lm-line" }, pick, el("span", { class: "lm-grow" }),
                button("Save as HTML", () => this.save("html", "text/html"), { title: "One page with every number; nothing is fetched" }), button("Save as JSON", () => this.save("json", "application/json"))), answer);
        }

        whole() {
            const title = "The whole report";
            const fill = async () => {
                if (!box.open || this.page.dataset.job === String(this.shownJob)) return;
                this.page.dataset.job = String(this.shownJob);
                const reply = await this.app.ask("analysis_export", { job: this.shownJob, form: "page" });
                if (reply) this.page.srcdoc = space.themed(reply.text);
            };
            /* laid out when it is seen: a frame in a closed fold has no width */
            const box = el("details", { ontoggle: () => ((this.folds[title] = box.open), fill()) }, el("summary", {}, title), this.page);
            box.open = Boolean(this.folds[title]);
            return box;
        }
    }

    space.Sections = Sections;
})();
