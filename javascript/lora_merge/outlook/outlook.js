/* What will come out, before it is made. */

import { button, el } from "../core/dom.js";
import { megabytes, policyWords } from "../core/format.js";
import { loadsIn } from "./loads.js";
import { strengthsLine } from "./strength.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "change" | "library" | "see" | "state">}
 *   OutlookNeeds
 */

/* what is cut, in words; `rank` is what will be saved, or the most that can be */
const cutText = (plan, rank) => {
    if (!plan.cut) return `exact: nothing is cut · ${rank}`;
    if (plan.policy === "lossless") return `${rank}: some is cut; the report says what that costs`;
    return /^[0-9]+$/.test(plan.policy)
        ? `cut to ${rank}; the report says what that costs`
        : `${rank}: ${policyWords(plan.policy)}; the report says what that costs`;
};

const rankText = (plan) =>
    plan.rank[0] === plan.rank[1] ? `rank ${plan.rank[1]}` : `rank ${plan.rank[0]} to ${plan.rank[1]}`;

/**
 * Size and exactness in three words.
 * @param {import("../types.js").Outlook} plan
 */
export const inShort = (plan) =>
    [
        `${plan.exact ? "" : "at most "}${megabytes(plan.bytes)}`,
        plan.cut ? "some is cut" : "exact",
        rankText(plan),
    ].join(" · ");

export class Outlook {
    /**
     * @param {OutlookNeeds} needs what it takes
     * @param {HTMLElement} changes the list of what differs from the merge it is based on
     */
    constructor(needs, changes) {
        this.needs = needs;
        this.facts = el("ul", { class: "lm-facts", "aria-live": "polite" });
        this.strength = el("li", { class: "lm-info", hidden: true });
        this.understand = button("Understand this merge", () => needs.see("Understand"), {
            class: "lm-button lm-small",
            title: "Who dominates where, what fights, what a rank costs, what to do about it",
            hidden: true,
        });
        this.box = el(
            "div",
            { class: "lm-outlook", role: "group", "aria-label": "What will come out" },
            el("h3", {}, "What will come out"),
            this.facts,
            changes,
            this.understand,
        );
    }

    fact(kind, ...text) {
        return el("li", { class: `lm-${kind}` }, ...text);
    }

    /* needs norms, which are measured once and kept: the line comes when they are there */
    weigh() {
        const { state, library } = this.needs;
        const found = strengthsLine(state.data, state.used(), library.looked);
        this.strength.hidden = Boolean(found && !found.text);
        this.strength.textContent = found ? found.text : "measuring how strong each is …";
        this.strength.title = (found && found.title) || "";
    }

    /** Say what to do first. */
    empty() {
        this.understand.hidden = true;
        this.facts.replaceChildren(
            this.fact("info", "Pick two LoRAs and set how strong each should be."),
            this.fact("info", "What their merge will be stands here before anything is saved."),
        );
    }

    /**
     * Say why there will be none, and what mends it.
     * @param {string} sentence
     * @param {HTMLElement[]} mends buttons
     */
    refused(sentence, mends) {
        this.facts.replaceChildren(
            this.fact("bad", sentence, mends.length ? el("div", { class: "lm-line" }, ...mends) : null),
        );
    }

    /**
     * Show a plan.
     * @param {import("../types.js").Outlook} plan
     * @param {string} last the file that was saved last
     */
    show(plan, last) {
        this.understand.hidden = false;
        const { data } = this.needs.state;
        this.weigh();
        this.facts.replaceChildren(
            ...this.offers(plan),
            ...this.taken(plan, last),
            ...this.made(plan, data),
            this.strength,
            ...this.slow(plan),
            this.loads(plan),
        );
    }

    /* what would spoil the merge stands first, with the button that sets it right */
    offers(plan) {
        return (plan.offers || []).map((offer) =>
            this.fact(
                "warn",
                `${offer.reason} `,
                button(offer.title, () => this.needs.change(offer.title, offer.changes), {
                    class: "lm-button lm-small",
                }),
            ),
        );
    }

    made(plan, data) {
        const { encoders } = plan;
        const count = this.needs.state.used().length;
        const most = plan.exact ? "" : " at most";
        return [
            this.fact(
                "good",
                `${plan.family} · ${count} ${count === 1 ? "LoRA" : "LoRAs"} · ${plan.modules} ` +
                    `modules${plan.emptied ? `, ${plan.emptied} more weigh 0 and stay out` : ""} ` +
                    `· ${encoders.length ? `text encoder from ${encoders.join(", ")}` : "no text encoder"}`,
            ),
            this.fact(plan.cut ? "info" : "good", cutText(plan, rankText(plan) + most)),
            this.fact(
                "info",
                plan.exact ? "" : "at most ",
                el("b", {}, megabytes(plan.bytes)),
                ` as ${data.precision === "float" ? "float32" : data.precision}`,
            ),
        ];
    }

    slow(plan) {
        const method = this.needs.catalog.method(this.needs.state.data.method);
        return [
            ...(method.space === "dense"
                ? [this.fact("info", "works number by number: seconds to minutes, not instant")]
                : []),
            ...plan.notes.map((note) => this.fact("warn", note)),
        ];
    }

    loads(plan) {
        const hosts = Object.values(plan.loads_in);
        const whole = hosts.length > 0 && hosts.every((host) => host.loaded === host.total);
        return this.fact(
            whole ? "good" : "info",
            whole ? `loads wholly in ${hosts.map((host) => host.title).join(", ")}` : loadsIn(plan.loads_in),
        );
    }

    /* names that are there already */
    taken(plan, last) {
        const { overwrite } = this.needs.state.data.output;
        const found = [];
        if (plan.exists && !overwrite && last === plan.name)
            found.push(
                this.fact(
                    "info",
                    `${plan.name} is saved; for another merge change the name, or tick Overwrite`,
                ),
            );
        else if (plan.exists)
            found.push(
                this.fact(
                    overwrite ? "warn" : "bad",
                    `${plan.name} exists already` +
                        (overwrite ? " and will be replaced" : "; change the name or tick Overwrite"),
                ),
            );
        if (plan.claimed)
            found.push(this.fact("warn", `another LoRA already answers to this name: ${plan.claimed}`));
        return found;
    }
}
