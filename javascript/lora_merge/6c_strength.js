"use strict";

/* How strong each source goes into the merge: |ratio| · ‖ΔW‖ with its block weights, from what is measured already. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const MUCH = 0.8;

    /* the ratio of a text encoder, counted from 1: its own, the one for all of them, or, where that is empty, the row's */
    space.encoderRatio = (row, encoder) => {
        const own = row.te ? row.te[Math.min(encoder, row.te.length) - 1] : null;
        return own === null || own === undefined ? row.ratio : own;
    };

    /* a source's own: block energies add up to 1, weights scale each block, and a block may hold several text encoders */
    space.strength = (row, looked, factor) => {
        const weight = (block) => (row.blocks[block] === undefined ? 1 : row.blocks[block]);
        let energy = 0;
        for (const [block, share] of Object.entries(looked.block_energy)) {
            const encoders = Object.entries((looked.encoder_energy || {})[block] || {});
            const rest = encoders.reduce((left, [, part]) => left - part, share);
            const scaled = encoders.reduce((sum, [encoder, part]) => sum + part * space.encoderRatio(row, Number(encoder)) ** 2, Math.max(0, rest) * row.ratio ** 2);
            energy += weight(block) ** 2 * scaled;
        }
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
            return { letter: space.letter(data.sources.indexOf(row)), norm: looks[index].norm, size: space.strength(row, looks[index], group && Number.isFinite(group.ratio) ? group.ratio : 1) };
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
