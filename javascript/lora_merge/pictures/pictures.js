/* Pictures in txt2img and img2img: compare and preview from the tab, and what can be done with a picture's
   merge. */

import { button, el, find, findAll } from "../core/dom.js";
import { proven } from "../core/format.js";
import { pause } from "../core/timing.js";
import { figureTable, verdictForm } from "../history/verdicts.js";
import { ComparisonPanel } from "./comparison.js";
import { chooseScript } from "./scripts.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "afterSave"
 *     | "ask"
 *     | "catalog"
 *     | "merge"
 *     | "open"
 *     | "refreshHistory"
 *     | "said"
 *     | "say"
 *     | "state"
 *     | "tellScripts"
 *     | "use">
 *   & import("./comparison.js").ComparisonNeeds} PicturesNeeds
 */

const SCRIPT = "LoRA merge comparison";

/* what stands before our sentence where no picture was made: the WebUI's error, or a line of comments
   where it swallows errors */
const REFUSED = /^(LoraMergeRefusal: |LoRA Merge made no picture: )/m;

export class Pictures {
    /**
     * @param {PicturesNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.seen = {};
        this.panels = Object.fromEntries(
            ["txt2img", "img2img"].map((tab) => [tab, new ComparisonPanel(needs, tab)]),
        );
        this.strip = el("section", { class: "lm-card lm-strip", hidden: true, "aria-label": "Preview" });
    }

    /* ------------------------------------------------------------ from the tab */

    async compare(name) {
        if (typeof window.switch_to_txt2img === "function") window.switch_to_txt2img();
        const before = await chooseScript("txt2img", SCRIPT);
        if (before === null)
            return this.needs.say(`Choose "${SCRIPT}" in the list of scripts of txt2img.`, true);
        const panel = this.panels.txt2img;
        for (let turn = 0; turn < 60 && !panel.shown(); turn += 1) {
            panel.watch();
            await pause(100);
        }
        if (panel.shown()) panel.choose(name);
        return true;
    }

    async preview() {
        if (this.busy || !this.needs.state.used().length) return;
        this.busy = true;
        this.halted = false;
        this.show(
            el(
                "p",
                { class: "lm-dim lm-line", role: "status" },
                "Making two pictures with the settings of txt2img …",
                button("Stop", () => (this.halted = true), { class: "lm-button lm-small" }),
            ),
        );
        const before = await chooseScript("txt2img", "None");
        try {
            await this.generate();
        } finally {
            this.busy = false;
            this.needs.tellScripts();
            if (before && before !== "None") await chooseScript("txt2img", before);
        }
    }

    async generate() {
        const info = () => (find("#generation_info_txt2img textarea") || { value: "" }).value;
        const log = () =>
            (
                find("#html_log_txt2img .error") ||
                find("#html_log_txt2img .comments") || { textContent: "" }
            ).textContent
                .trim()
                .replace(REFUSED, "");
        const said = () => (find("#html_log_txt2img") || { textContent: "" }).textContent;
        const old = info();
        const told = said();
        const images = () => [...new Set(findAll("#txt2img_gallery img").map((image) => image.src))];
        const shown = images().join();
        this.needs.tellScripts({ preview: true });
        await pause(200);
        if (this.halted) return this.stopped();
        find("#txt2img_generate").click();
        const stop = () => find("#txt2img_interrupt");
        const busy = () => Boolean(stop() && (stop().offsetParent || stop().style.display === "block"));
        /* its end is not told by the buttons alone: a generation just before this one, a refused one say,
           gives them back when its own progress bar goes, and every generation has a bar of its own */
        let running = false;
        for (let turn = 0; turn < 7200; turn += 1) {
            await pause(250);
            const now = busy() || Boolean(find("#txt2img_results .progressDiv"));
            running = running || now || info() !== old;
            if (this.halted && busy()) stop().click();
            if (running && !now && turn > 3) break;
            if (!running && turn > 40) break;
        }
        /* the pictures, or what is wrong, come a moment after the bar has gone */
        const come = () => this.halted || (info() === old ? said() !== told : images().join() !== shown);
        for (let turn = 0; turn < 60 && !come(); turn += 1) await pause(150);
        const found = images().filter((source) => !shown.includes(source));
        if (this.halted) return this.stopped();
        if (found.length < 2) return this.show(el("p", { class: "lm-bad" }, log() || "No preview was made."));
        return this.show(
            ...["Stack of the LoRAs", "Merge"].map((label, index) =>
                el(
                    "figure",
                    {},
                    el("img", { src: found[index], alt: `${label}, as txt2img makes it now` }),
                    el("figcaption", {}, label),
                ),
            ),
        );
    }

    stopped() {
        return this.show(el("p", { class: "lm-dim", role: "status" }, "The preview was stopped."));
    }

    show(...nodes) {
        this.strip.hidden = false;
        this.strip.replaceChildren(
            el(
                "div",
                { class: "lm-line" },
                el("h3", {}, "Preview"),
                button("✕", () => (this.strip.hidden = true), {
                    class: "lm-button lm-small",
                    "aria-label": "Close the preview",
                }),
            ),
            el("div", { class: "lm-figures" }, ...nodes),
        );
    }

    /* ------------------------------------------------------------ beside the WebUI's gallery */

    watch() {
        for (const tab of ["txt2img", "img2img"]) {
            const field = find(`#generation_info_${tab} textarea`);
            if (field && field.value !== this.seen[tab]) {
                this.seen[tab] = field.value;
                this.made(tab, field.value);
            }
            this.panels[tab].watch();
            for (const said of findAll(`#html_log_${tab} .error, #html_log_${tab} .comments`))
                said.classList.toggle("lora-merge-refused", REFUSED.test(said.textContent.trim()));
            const pasted = find(`#lora_merge_pasted_${tab} textarea, #lora_merge_pasted_${tab} input`);
            if (pasted && pasted.value && pasted.value !== this.seen[`${tab} pasted`]) {
                this.seen[`${tab} pasted`] = pasted.value;
                const text = pasted.value;
                this.needs.say(
                    el(
                        "span",
                        {},
                        "The pasted picture carries a merge. ",
                        button("Load it", () => this.load({ text }), {
                            class: "lm-button lm-small lm-primary",
                        }),
                    ),
                );
            }
        }
    }

    made(tab, text) {
        try {
            this.texts = JSON.parse(text).infotexts || [];
        } catch {
            this.texts = [];
        }
        const has = this.texts.some((one) => one.includes("Merge recipe:"));
        this.bar(tab, has);
        if (this.texts.some((one) => one.includes("Merge column:"))) this.comparison(tab);
    }

    bar(tab, has) {
        const buttons = find(`#image_buttons_${tab}`);
        let bar = find(`#lora_merge_bar_${tab}`);
        if (!bar && has && buttons) {
            const said = el("span", { class: "lm-dim", role: "status" });
            bar = el(
                "div",
                { id: `lora_merge_bar_${tab}`, class: "lora-merge lm-line" },
                button("Save this merge", () => this.save(said), {
                    title: "Save the merge of the selected picture as a LoRA",
                }),
                button("Keep as preview", () => this.keep(tab, said), {
                    title: "Make the selected picture the preview on the card of its merge",
                }),
                button("Send recipe to Merge", () => this.load({ text: this.selected() })),
                said,
            );
            buttons.after(bar);
        }
        if (bar) bar.hidden = !has;
    }

    index() {
        const index =
            typeof window.selected_gallery_index === "function" ? window.selected_gallery_index() : -1;
        if (index >= 0 && index < this.texts.length) return index;
        return Math.max(
            0,
            this.texts.findIndex((one) => one.includes("Merge recipe:")),
        );
    }

    selected() {
        return this.texts[this.index()] || "";
    }

    async state(given) {
        const reply = await this.needs.ask("picture_text", given);
        if (reply && !reply.state) this.needs.say("That picture carries no merge.", true);
        return reply && reply.state;
    }

    async load(given) {
        const state = await this.state(given);
        if (!state) return;
        this.needs.use(state);
        const tabs = findAll("#tabs > .tab-nav button, #tabs button[role=tab]");
        const tab = tabs.find((one) => one.textContent.trim() === "LoRA Merge");
        if (tab) tab.click();
    }

    async save(said) {
        const state = await this.state({ text: this.selected() });
        if (!state) {
            said.textContent = "That picture carries no merge.";
            return;
        }
        said.textContent = "Saving …";
        const { data } = this.needs.state;
        const result = await this.needs.merge({
            ...JSON.parse(JSON.stringify(data)),
            ...state,
            output: {
                ...data.output,
                template: this.needs.catalog.settings.template,
                overwrite: false,
                triggers: null,
            },
        });
        said.textContent = result ? `Saved ${result.output}: ${proven(result)}.` : this.needs.said();
    }

    async keep(tab, said) {
        const source = this.pictureAt(tab, this.index());
        if (!source) return;
        const image = await source;
        const reply = await this.needs.ask("preview_set", { text: this.selected(), image });
        said.textContent = reply ? `This is the preview of ${reply.name} now.` : this.needs.said();
        if (reply) this.needs.afterSave();
    }

    /* the picture at a place of the gallery as a data: address, small enough for a card */
    async pictureAt(tab, index) {
        const pictures = findAll(
            `#${tab}_gallery .thumbnails img, #${tab}_gallery .grid-container img, #${tab}_gallery ` +
                ".grid-wrap img",
        );
        const picture = pictures[index] || find(`#${tab}_gallery img`);
        if (!picture) return "";
        const whole = await new Promise((resolve, reject) => {
            const image = new Image();
            image.onload = () => resolve(image);
            image.onerror = reject;
            image.src = picture.src;
        });
        const scale = Math.min(1, 1024 / Math.max(whole.naturalWidth, whole.naturalHeight));
        const canvas = el("canvas", {
            width: Math.round(whole.naturalWidth * scale),
            height: Math.round(whole.naturalHeight * scale),
        });
        canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
        return canvas.toDataURL("image/png");
    }

    /* ------------------------------------------------------------ verdicts */

    async comparison(tab) {
        const reply = await this.needs.ask("comparison", {});
        if (!reply || !reply.found) return;
        this.drawComparison(this.panels[tab].verdict, reply.found);
    }

    drawComparison(place, found) {
        const merges = found.columns
            .map((column, index) => ({ ...column, index }))
            .filter((column) => column.recipe && column.kind !== "source" && column.kind !== "stack");
        place.replaceChildren(
            el("h3", {}, "What came out"),
            figureTable(found.figures),
            ...merges.map((column) =>
                el(
                    "details",
                    { class: "lm-verdict" },
                    el("summary", {}, "Your verdict on ", el("bdi", {}, column.label)),
                    verdictForm(found.sources, {}, async (verdict, notes) => {
                        const reply = await this.needs.ask("verdict", {
                            comparison: found.id,
                            column: column.index,
                            verdict,
                            notes,
                        });
                        if (!reply) return this.needs.said();
                        this.needs.refreshHistory();
                        if (reply.status === "revise") await this.needs.open({ entry: reply.entry });
                        return reply.status === "revise"
                            ? "Written down as to be revised; its recipe is open in the Merge tab."
                            : "Written down in the history.";
                    }),
                ),
            ),
        );
    }
}
