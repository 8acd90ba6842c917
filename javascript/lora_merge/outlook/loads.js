/* Which hosts load a file. */

import { el } from "../core/dom.js";
import { percentText } from "../core/format.js";

/**
 * What each host makes of a file's names; {} for a family that no table knows.
 * @param {Record<string, any>} hosts
 * @returns {HTMLElement}
 */
export function loadsIn(hosts) {
    const all = Object.values(hosts || {});
    if (!all.length) return el("p", { class: "lm-dim" }, "loads in: no table vouches for this family");
    return el(
        "p",
        { class: "lm-loads" },
        "loads in ",
        el(
            "span",
            { class: "lm-badges" },
            ...all.map((host) => {
                const lost = host.total - host.loaded;
                const part =
                    host.share_lost === null
                        ? `loads ${host.loaded} of ${host.total}`
                        : "loses " +
                          `${host.share_lost < 0.005 ? "less than 1 %" : percentText(host.share_lost, 0)}`;
                const reasons = [
                    `${host.loaded} of ${host.total} modules${host.how === "run" ? "" : ` (${host.how})`}`,
                    ...Object.entries(host.lost).map(([name, reason]) => `${name}: ${reason}`),
                ];
                return el(
                    "span",
                    { class: `lm-badge ${lost ? "lm-warn" : "lm-good-text"}`, title: reasons.join("\n") },
                    el("bdi", {}, host.title),
                    lost ? ` ${part}` : " ✓",
                );
            }),
        ),
    );
}
