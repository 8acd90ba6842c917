/* The jobs of this window over a reload of the page, whenever it comes. */

import { thisWindow } from "./window.js";

const JOB = "lora-merge-job";

/* those whose end is shown in the tab */
const SHOWN = ["merge", "sweep", "verify"];

/** @param {number} job whose end is still to be shown */
export const keepJob = (job) => {
    try {
        sessionStorage.setItem(JOB, String(job));
    } catch {
        /* nothing is kept: the server knows it, too */
    }
};

/** What was to be shown is shown. */
export const forgetJob = () => {
    try {
        sessionStorage.removeItem(JOB);
    } catch {
        /* nothing was kept */
    }
};

const kept = () => {
    try {
        return Number(sessionStorage.getItem(JOB));
    } catch {
        return 0;
    }
};

/**
 * The jobs that this window asked for and has not shown the end of, the oldest first: as the server knows
 * them, and the one whose last word the page before may have been given while it was going.
 * @param {(op: string, fields: object) => Promise<any>} request
 * @returns {Promise<any[]>}
 */
export const jobsToShow = async (request) => {
    const { jobs } = await request("window_open", thisWindow());
    const numbers = new Set(jobs.map((one) => one.job));
    if (kept()) numbers.add(kept());
    const found = [];
    for (const job of [...numbers].sort((one, other) => one - other))
        try {
            found.push(await request("job", { job }));
        } catch {
            /* the program was restarted since: nothing of that job was written */
        }
    return found.filter((one) => SHOWN.includes(one.what));
};
