"use strict";

/* How strong each source goes into the merge: |ratio| · ‖ΔW‖ with its block weights, from what is measured already. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const ENCODERS = ["BASE", "CLIP", "T5"];
    const MUCH = 0.8;

    /* a source's own: block energies add up to 1, and weights scale each block */
    const strength = (row, looked, factor) => {
        const { te } = row;
        const ratio = (block) => (te && ENCODERS.includes(block) ? te[block === "T5" ? te.length - 1 : 0] : row.ratio);
        const weight = (block) => (row.blocks[block] === undefined ? 1 : row.blocks[block]);
        const energy = Object.entries(looked.block_energy).reduce((sum, [block, share]) => sum + share * (weight(block) * ratio(block)) ** 2, 0);
        return Math.abs(factor) * looked.norm * Math.sqrt(energy);
    };

    /* one sentence; null while something is being measured, "" where there is nothing to compare */
    space.strengths = (app) => {
        const { data } = app.state;
        const rows = app.state.used();
        const looks = rows.map((row) => app.looked[row.key]);
        if (rows.length < 2 || looks.some((looked) => looked && looked.problem)) return { text: "" };
        if (looks.some((looked) => !looked)) return null;
        const found = rows.map((row, index) => {
            const group = row.group && data.groups[row.group];
            return { letter: space.letter(data.sources.indexOf(row)), norm: looks[index].norm, size: strength(row, looks[index], group && Number.isFinite(group.ratio) ? group.ratio : 1) };
        });
        const total = found.reduce((sum, one) => sum + one.size, 0);
        if (!(total > 0)) return { text: "" };
        const most = found.reduce((best, one) => (one.size > best.size ? one : best));
        const text = found.map((one) => `${one.letter} ${Math.round((100 * one.size) / total)} %`).join(" · ");
        const norms = found.map((one) => `${one.letter} ${Number(one.norm.toPrecision(3))}`).join(", ");
        const mostly = most.size / total > MUCH ? `; mostly ${most.letter}` : "";
        return { text: `strength at these ratios: ${text}${mostly}`, title: `|ratio| × norm of each. Norms at ratio 1: ${norms}` };
    };
})();
