/* From what is set up to what was saved: the plan, the job, its result. */

import { button } from "../core/dom.js";
import { proven } from "../core/format.js";
import { forgetJob, jobsToShow, keepJob } from "../core/running.js";
import { later, pause } from "../core/timing.js";
import { addToPrompt } from "../pictures/prompt.js";
import { Bar } from "./bar.js";
import { inShort, Outlook } from "./outlook.js";
import { Result } from "./result.js";
import { Saving } from "./saving.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "afterSave"
 *     | "ask"
 *     | "catalog"
 *     | "preview"
 *     | "request"
 *     | "say"
 *     | "state">
 *   & import("./outlook.js").OutlookNeeds
 *   & import("./result.js").ResultNeeds
 *   & import("./saving.js").SavingNeeds} OutputNeeds
 */

export class Output {
    /**
     * @param {OutputNeeds} needs what it takes
     * @param {HTMLElement} message where messages are shown
     * @param {() => void} pickFirst opens the first empty picker
     */
    constructor(needs, message, pickFirst) {
        this.needs = needs;
        this.pickFirst = pickFirst;
        this.job = null;
        this.refusal = null;
        this.saving = new Saving(needs);
        this.details = this.saving.details;
        this.outlook = new Outlook(needs, this.details.changes);
        this.result = new Result(needs, (result) => this.partners(result));
        const { saving, result } = this;
        this.bar = new Bar(
            { saving, result, message, can_generate: needs.catalog.can_generate },
            {
                merge: () => this.merge(),
                cancel: () => this.cancel(),
                preview: () => this.needs.preview(),
            },
        );
        const preview = later(() => this.preview(), 200);
        this.replan = () => {
            this.due = true;
            preview();
        };
        needs.state.listen((what, origin) => {
            this.saving.update(origin);
            if (origin !== this.result) this.result.older();
            this.replan();
        });
        this.saving.update();
        this.replan();
    }

    get data() {
        return this.needs.state.data;
    }

    weigh() {
        this.outlook.weigh();
    }

    async preview() {
        const turn = (this.turn = (this.turn || 0) + 1);
        this.due = false;
        this.refusal = null;
        if (!this.needs.state.used().length) {
            this.details.show([]);
            this.outlook.empty();
            this.bar.say("", "", "Nothing is picked yet.");
            this.refusal = {
                sentence: "Pick a LoRA first; a merge is made of two or more.",
                mends: () => [button("Pick a LoRA", () => this.pickFirst(), { class: "lm-button" })],
            };
            return;
        }
        let reply;
        try {
            reply = await this.needs.request("plan", { state: this.data });
        } catch (error) {
            if (turn !== this.turn) return;
            this.refuse(error);
            return;
        }
        if (turn === this.turn) this.show(reply.plan);
    }

    /* said at once in the bar and in the outlook; opened when somebody presses Merge all the same */
    refuse(error) {
        const { remedy } = error;
        const mends = () =>
            remedy
                ? [
                      button(remedy.label, () => this.needs.state.replace(remedy.edit), {
                          class: "lm-button lm-small",
                      }),
                  ]
                : [];
        this.refusal = { sentence: error.message, mends };
        this.outlook.refused(error.message, mends());
        this.bar.say("bad", "", error.message);
    }

    show(plan) {
        this.planned = plan;
        const { output } = this.data;
        const taken = plan.exists && !output.overwrite;
        const saved = taken && this.last === plan.name;
        this.outlook.show(plan, this.last);
        this.saving.show(plan);
        const warnings = plan.offers.length + plan.notes.length;
        const more = warnings ? ` · ▲ ${warnings === 1 ? "1 warning" : `${warnings} warnings`}` : "";
        this.bar.say(
            taken && !saved ? "bad" : "",
            `${plan.folder && plan.folder !== "." ? `${plan.folder}/` : ""}${plan.name}`,
            saved
                ? "saved; another merge needs another name"
                : taken
                  ? "exists already"
                  : inShort(plan) + more + (plan.exists ? " · will be replaced" : ""),
        );
        if (taken) this.refusal = { sentence: `${plan.name} exists already.`, mends: () => this.renames() };
    }

    /* two ways out of a name that is taken */
    renames() {
        const { output } = this.data;
        const change = (fields) => () => {
            Object.assign(output, fields);
            this.needs.state.changed("value");
        };
        const numbered = `${output.template.replace(/_?v?\{n\}$/, "")}_v{n}`;
        return [
            output.template.includes("{n}")
                ? null
                : button("Add a number to the name", change({ template: numbered }), {
                      class: "lm-button lm-small",
                  }),
            button("Replace the file", change({ overwrite: true }), {
                class: "lm-button lm-small",
                title: "Ticks Overwrite; you are asked once more when you press Merge",
            }),
        ].filter(Boolean);
    }

    async merge(state) {
        if (this.job !== null) return null;
        const asked = state || this.details.filled(this.data);
        if (!state) {
            /* what is typed in this second counts, not what was planned before it */
            if (this.due) await this.preview();
            if (this.refusal) {
                this.result.refuse(this.refusal.sentence, this.refusal.mends());
                return null;
            }
        }
        if (asked.output.overwrite) {
            const { plan } = (await this.needs.ask("plan", { state: asked })) || {};
            if (!plan || (plan.exists && !window.confirm(`Replace ${plan.name}?`))) return null;
        }
        let reply;
        try {
            reply = await this.needs.request("merge", { state: asked });
        } catch (error) {
            this.refuse(error);
            this.result.refuse(error.message, this.refusal.mends());
            return null;
        }
        const result = await this.follow(reply, (done) => this.saved(done));
        /* what is changed from here on is developed from this merge */
        if (result && !state && result.entry) {
            this.details.develop(result.entry, result.output.replace(/\.safetensors$/, ""));
            this.details.set(null);
            this.needs.state.changed("value", this.result);
        }
        return result;
    }

    /* after a reload of the page: what was running goes on, and is shown again */
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
        if (started.what === "merge") this.result.close();
        this.bar.run(true);
        let now = started;
        while (now.state === "waiting" || now.state === "running") {
            this.progress(now);
            await pause(80);
            const reply = await this.needs.ask("job", { job: this.job });
            if (!reply) break;
            now = reply;
        }
        this.job = null;
        /* where the page is going, or the server was not reached, it is found again */
        if (now.state !== "waiting" && now.state !== "running") forgetJob();
        this.bar.run(false);
        this.replan();
        if (now.state === "cancelled") this.needs.say("Cancelled; nothing was written.");
        if (now.state === "failed") {
            this.bar.hear("");
            this.result.refuse(now.error, []);
        }
        if (now.state !== "done") return null;
        then(now.result);
        return now.result;
    }

    progress(now) {
        this.bar.progress(now, this.stopping);
    }

    async cancel() {
        if (this.job === null) return;
        this.stopping = true;
        this.bar.stage.textContent = "cancelling …";
        await this.needs.ask("cancel", { job: this.job });
    }

    saved(result) {
        this.last = result.output;
        this.result.show(result);
        this.bar.hear(this.result.spoken(result));
        this.needs.afterSave();
    }

    async partners(result) {
        const reply = this.job === null ? await this.needs.ask("partners", { entry: result.entry }) : null;
        if (reply) await this.follow(reply, (done) => this.saved(done));
    }

    /* put a tag into the prompt of txt2img, once, and go there */
    async useTag(tag, text = tag) {
        if (!(await addToPrompt(tag, text))) this.needs.say(text);
    }

    recheck() {
        return this.result.recheck();
    }
}
