/* What will come out, saving it, and the proof. */

import { button, el } from "../core/dom.js";
import { leftText, megabytes, policyWords, proven } from "../core/format.js";
import { forgetJob, jobsToShow, keepJob } from "../core/running.js";
import { later } from "../core/timing.js";
import { openSweep } from "../history/sweep.js";
import { addToPrompt } from "../pictures/prompt.js";
import { Details } from "./details.js";
import { loadsIn } from "./loads.js";
import { resultParts } from "./result.js";
import { strengthsLine } from "./strength.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "addSource"
 *     | "afterSave"
 *     | "ask"
 *     | "catalog"
 *     | "change"
 *     | "compare"
 *     | "held"
 *     | "library"
 *     | "open"
 *     | "preview"
 *     | "request"
 *     | "say"
 *     | "state"
 *     | "verify">
 *   & import("./result.js").ResultNeeds
 *   & import("../history/sweep.js").SweepNeeds
 *   & import("./details.js").DetailsNeeds} OutputNeeds
 */

const STAGES = {
    queue: "waiting for the generation to finish",
    survey: "looking at all modules",
    merge: "merging",
    verify: "proving",
    save: "saving",
    recipe: "reading the recipe",
};

export class Output {
    /**
     * @param {OutputNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.job = null;
        this.facts = el("ul", { class: "lm-facts", "aria-live": "polite" });
        this.strength = el("li", { class: "lm-info", hidden: true });
        const field = (name, label, attributes, tag = "input") =>
            el(tag, {
                type: tag === "input" ? "text" : undefined,
                "aria-label": label,
                oninput: (event) => this.set(name, event.target.value),
                ...attributes,
            });
        this.template = field("template", "Name of the merge");
        this.folder = field("folder", "Sub-folder", { placeholder: "the LoRA folder itself" });
        this.triggers = field("triggers", "Trigger words");
        this.notes = field("notes", "Notes", { rows: 2 }, "textarea");
        this.overwrite = el("input", {
            type: "checkbox",
            onchange: () => this.set("overwrite", this.overwrite.checked),
        });
        this.name = el("output", { class: "lm-output-name" });
        this.go = button("Merge", () => this.merge(), {
            class: "lm-button lm-primary lm-big",
            title: "Ctrl+Enter",
        });
        this.stop = button("Cancel", () => this.cancel(), { hidden: true, class: "lm-button lm-small" });
        this.bar = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
        this.stage = el("div", { class: "lm-dim lm-stage", "aria-live": "polite" });
        this.details = new Details(needs);
        this.result = el("section", { class: "lm-card lm-result", hidden: true, "aria-label": "Saved" });
        this.plan = el(
            "section",
            { class: "lm-card lm-outlook", "aria-label": "What will come out" },
            el("h3", {}, "What will come out"),
            this.facts,
        );
        this.save = el(
            "section",
            { class: "lm-card", "aria-label": "Save as" },
            el("h3", {}, "Save as"),
            this.name,
            el(
                "div",
                { class: "lm-fields" },
                el(
                    "label",
                    {
                        class: "lm-double",
                        title: "{sources} {method} {weights} {rank} and {n}, which counts up by itself",
                    },
                    el("span", {}, "Name"),
                    this.template,
                ),
                el(
                    "label",
                    { title: "Below the LoRA folder; made if it is not there" },
                    el("span", {}, "Folder"),
                    this.folder,
                ),
                el("label", { class: "lm-line lm-check" }, this.overwrite, "Overwrite"),
                el(
                    "label",
                    {
                        class: "lm-double",
                        title: "Written beside the file: the WebUI adds them to the prompt with the card",
                    },
                    el("span", {}, "Trigger words"),
                    this.triggers,
                ),
                el("label", { class: "lm-double" }, el("span", {}, "Notes"), this.notes),
                this.details.based_on,
                this.details.preview,
            ),
            el(
                "div",
                { class: "lm-line" },
                this.go,
                needs.catalog.can_generate
                    ? button("Preview", () => this.needs.preview(), {
                          title:
                              "Stack and merge side by side, with the settings of txt2img; nothing " +
                              "is saved",
                      })
                    : null,
                needs.catalog.can_generate
                    ? button("Compare in txt2img", () => this.needs.compare(), {
                          title: "Sources, stack and merge in one grid",
                      })
                    : null,
                button("Sweep…", () => openSweep(needs), {
                    title: "The same merge with one thing changed, several times; asks before it writes",
                }),
            ),
            this.bar,
            el("div", { class: "lm-progress" }, this.stage, this.stop),
            this.details.changes,
        );
        this.box = el("div", { class: "lm-side" }, this.plan, this.save, this.result);
        const preview = later(() => this.preview(), 200);
        this.replan = () => {
            this.due = true;
            preview();
        };
        needs.state.listen((what, origin) => (this.update(origin), this.replan()));
        this.update();
        this.replan();
    }

    get data() {
        return this.needs.state.data;
    }

    set(name, value) {
        this.data.output[name] = value;
        this.needs.state.changed("value", this[name]);
    }

    update(origin) {
        const { output } = this.data;
        for (const name of ["template", "folder", "notes"])
            if (this[name] !== origin && this[name] !== document.activeElement)
                this[name].value = output[name] || "";
        if (output.triggers !== null && this.triggers !== origin) this.triggers.value = output.triggers;
        this.overwrite.checked = output.overwrite;
    }

    fact(kind, ...text) {
        return el("li", { class: `lm-${kind}` }, ...text);
    }

    /* needs norms, which are measured once and kept: the line comes when they are there */
    weigh() {
        const found = strengthsLine(this.data, this.needs.state.used(), this.needs.library.looked);
        this.strength.hidden = Boolean(found && !found.text);
        this.strength.textContent = found ? found.text : "measuring how strong each is …";
        this.strength.title = (found && found.title) || "";
    }

    async preview() {
        const turn = (this.turn = (this.turn || 0) + 1);
        this.due = false;
        if (!this.needs.state.used().length) {
            this.details.show([]);
            this.facts.replaceChildren(
                this.fact("info", "Pick two LoRAs, set how strong each should be, press Merge."),
            );
            this.name.textContent = "";
            this.go.disabled = true;
            return;
        }
        let reply;
        try {
            reply = await this.needs.request("plan", { state: this.data });
        } catch (error) {
            if (turn !== this.turn) return;
            this.facts.replaceChildren(this.fact("bad", error.message));
            this.name.textContent = "";
            this.go.disabled = true;
            return;
        }
        if (turn === this.turn) this.show(reply.plan);
    }

    /* what is cut, in words; `rank` is what will be saved, or the most that can be */
    cut(plan, rank) {
        if (!plan.cut) return `exact: nothing is cut · ${rank}`;
        if (plan.policy === "lossless") return `${rank}: some is cut; the report says what that costs`;
        return /^[0-9]+$/.test(plan.policy)
            ? `cut to ${rank}; the report says what that costs`
            : `${rank}: ${policyWords(plan.policy)}; the report says what that costs`;
    }

    show(plan) {
        const method = this.needs.catalog.method(this.needs.state.data.method);
        const rank =
            plan.rank[0] === plan.rank[1]
                ? `rank ${plan.rank[1]}`
                : `rank ${plan.rank[0]} to ${plan.rank[1]}`;
        const most = plan.exact ? "" : " at most";
        const { encoders } = plan;
        const count = this.needs.state.used().length;
        const facts = [
            this.fact(
                "good",
                `${plan.family} · ${count} ${count === 1 ? "LoRA" : "LoRAs"} · ${plan.modules} ` +
                    `modules${plan.emptied ? `, ${plan.emptied} more weigh 0 and stay out` : ""} · ` +
                    `${encoders.length ? `text encoder from ${encoders.join(", ")}` : "no text encoder"}`,
            ),
            this.fact(plan.cut ? "info" : "good", this.cut(plan, rank + most)),
            this.fact(
                "info",
                plan.exact ? "" : "at most ",
                el("b", {}, megabytes(plan.bytes)),
                ` as ${this.data.precision === "float" ? "float32" : this.data.precision}`,
            ),
            this.strength,
        ];
        this.weigh();
        /* what would spoil the merge stands first, with the button that sets it right */
        facts.unshift(
            ...(plan.offers || []).map((offer) =>
                this.fact(
                    "warn",
                    `${offer.reason} `,
                    button(offer.title, () => this.needs.change(offer.title, offer.changes), {
                        class: "lm-button lm-small",
                    }),
                ),
            ),
        );
        if (method.space === "dense")
            facts.push(this.fact("info", "works number by number: seconds to minutes, not instant"));
        for (const note of plan.notes) facts.push(this.fact("warn", note));
        const hosts = Object.values(plan.loads_in);
        const whole = hosts.length > 0 && hosts.every((host) => host.loaded === host.total);
        facts.push(
            this.fact(
                whole ? "good" : "info",
                whole
                    ? `loads wholly in ${hosts.map((host) => host.title).join(", ")}`
                    : loadsIn(plan.loads_in),
            ),
        );
        const again = "; change the name or tick Overwrite";
        if (plan.exists && !this.data.output.overwrite && this.last === plan.name)
            facts.push(
                this.fact(
                    "info",
                    `${plan.name} is saved; for another merge change the name, or tick Overwrite`,
                ),
            );
        else if (plan.exists)
            facts.push(
                this.fact(
                    this.data.output.overwrite ? "warn" : "bad",
                    `${plan.name} exists ` +
                        `already${this.data.output.overwrite ? " and will be replaced" : again}`,
                ),
            );
        if (plan.claimed)
            facts.push(this.fact("warn", `another LoRA already answers to this name: ${plan.claimed}`));
        this.facts.replaceChildren(...facts);
        this.name.replaceChildren(
            el("bdi", {}, `${plan.folder && plan.folder !== "." ? `${plan.folder}/` : ""}${plan.name}`),
        );
        if (this.data.output.triggers === null && this.triggers !== document.activeElement)
            this.triggers.value = plan.triggers;
        this.planned = plan;
        this.details.show(plan.changes || []);
        this.go.disabled = this.job !== null || (plan.exists && !this.data.output.overwrite);
    }

    async merge(state) {
        if (this.job !== null) return null;
        const asked = state || this.details.filled(this.data);
        if (asked.output.overwrite) {
            /* what is typed in this second counts, not what was planned before it */
            const { plan } = (await this.needs.ask("plan", { state: asked })) || {};
            if (!plan || (plan.exists && !window.confirm(`Replace ${plan.name}?`))) return null;
        }
        const reply = await this.needs.ask("merge", { state: asked });
        if (!reply) return null;
        const result = await this.follow(reply, (done) => this.saved(done));
        /* what is changed from here on is developed from this merge */
        if (result && !state && result.entry) {
            this.details.develop(result.entry, result.output.replace(/\.safetensors$/, ""));
            this.details.set(null);
            this.needs.state.changed("value");
        }
        return result;
    }

    /* after a reload of the page: a merge that was running goes on, and is shown again */
    async resume() {
        const found = await jobsToShow(this.needs.request).catch(() => []);
        for (const now of found) await this.follow(now, (result) => this.ended(now.what, result));
        forgetJob();
    }

    ended(what, result) {
        if (what === "merge") return this.saved(result);
        if (what === "verify") return this.needs.say(`Verified: ${proven(result)}.`);
        this.needs.say(`The sweep has saved ${result.made.map((one) => one.output).join(", ")}.`);
        return this.needs.afterSave();
    }

    async follow(started, then) {
        this.job = started.job;
        this.stopping = false;
        keepJob(started.job);
        this.go.disabled = true;
        this.stop.hidden = this.bar.hidden = false;
        let now = started;
        while (now.state === "waiting" || now.state === "running") {
            this.progress(now);
            await new Promise((resolve) => setTimeout(resolve, 150));
            const reply = await this.needs.ask("job", { job: this.job });
            if (!reply) break;
            now = reply;
        }
        this.job = null;
        /* where the page is going, or the server was not reached, it is found again */
        if (now.state !== "waiting" && now.state !== "running") forgetJob();
        this.stop.hidden = this.bar.hidden = true;
        this.stage.textContent = now.state === "cancelled" ? "Cancelled; nothing was written." : "";
        this.replan();
        if (now.state === "failed") this.needs.say(now.error, true);
        if (now.state !== "done") return null;
        then(now.result);
        return now.result;
    }

    progress(now) {
        const total =
            now.what === "merge" || now.what === "verify" ? now.share : now.total ? now.done / now.total : 0;
        if (now.state === "running" && now.stage !== "queue" && total) this.bar.value = total;
        else this.bar.removeAttribute("value");
        const left = now.left === null || now.left === undefined ? "" : ` · ${leftText(now.left)} left`;
        const count = now.total ? ` · ${now.done} of ${now.total} modules` : "";
        this.stage.textContent = this.stopping
            ? "cancelling …"
            : now.state === "waiting"
              ? "waiting for the one before …"
              : `${STAGES[now.stage] || now.stage || "starting"}${count}${left}`;
    }

    async cancel() {
        if (this.job === null) return;
        this.stopping = true;
        this.stage.textContent = "cancelling …";
        await this.needs.ask("cancel", { job: this.job });
    }

    saved(result) {
        this.draw(result);
        this.needs.afterSave();
    }

    draw(result) {
        this.last = result.output;
        this.shown = result;
        this.result.hidden = false;
        const acts = {
            use: () => this.use(result),
            copy: () => this.copy(result),
            partners: () => this.partners(result),
        };
        this.result.replaceChildren(...resultParts(this.needs, result, acts));
    }

    cardOf(result) {
        return this.needs.ask("card", { entry: result.entry || "", key: result.key });
    }

    /* a file that was renamed is shown under its new name; one that is gone, not at all */
    async recheck() {
        const { shown } = this;
        const card = shown && (await this.cardOf(shown));
        if (!card || shown !== this.shown) return;
        if (card.state === "renamed")
            this.draw({
                ...shown,
                key: card.key,
                output: `${card.name}.safetensors`,
                alias: card.prompt.slice(6, -3),
                prompt: card.prompt,
                triggers: card.triggers,
            });
        this.result.hidden = card.state !== "there" && card.state !== "renamed";
    }

    async partners(result) {
        const reply = this.job === null ? await this.needs.ask("partners", { entry: result.entry }) : null;
        if (reply) await this.follow(reply, (done) => this.saved(done));
    }

    async copy(result) {
        const text = this.tag(result);
        try {
            await navigator.clipboard.writeText(text);
            this.needs.say(`Copied: ${text}`);
        } catch {
            this.needs.say(text);
        }
    }

    tag(result) {
        return result.triggers ? `${result.triggers}, ${result.prompt}` : result.prompt;
    }

    async use(result) {
        const card = await this.cardOf(result);
        if (!card) return;
        if (!card.prompt) this.needs.say(card.said, true);
        else this.useTag(card.prompt, this.tag(card));
    }

    /* put a tag into the prompt of txt2img, once, and go there */
    async useTag(tag, text = tag) {
        if (!(await addToPrompt(tag, text))) this.needs.say(text);
    }
}
