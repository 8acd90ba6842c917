/* The bar stays at the lower edge of the window, and what one looks at beside it, wherever the WebUI has put
   the tab. `position: sticky` cannot: gradio's container hides what flows over, and holds it. */

const GAP = 8;

/**
 * Keep them in view.
 * @param {HTMLElement} root of the tab
 * @param {HTMLElement} place the column of what one looks at
 * @param {HTMLElement} bar what stays below
 * @returns {() => void} fits them anew, at once
 */
export const stay = (root, place, bar) => {
    const set = (name, value) => root.style.setProperty(name, `${Math.round(value)}px`);
    const fit = () => {
        /* another tab is shown */
        if (!root.offsetParent) return;
        const own = root.getBoundingClientRect();
        const column = place.getBoundingClientRect();
        const { height } = bar.getBoundingClientRect();
        /* where the tab ends, the bar ends: what the WebUI has below it can be reached */
        const bottom = Math.max(0, window.innerHeight - own.bottom);
        const top = Math.max(GAP, column.top);
        set("--lm-above", own.top + window.scrollY);
        set("--lm-foot", height);
        set("--lm-bottom", bottom);
        set("--lm-left", own.left);
        set("--lm-width", own.width);
        set("--lm-see-left", column.left);
        set("--lm-see-width", column.width);
        set("--lm-see-top", top);
        set("--lm-see-height", window.innerHeight - bottom - height - top - GAP);
    };
    let due = false;
    const soon = () => {
        if (due) return;
        due = true;
        requestAnimationFrame(() => {
            due = false;
            fit();
        });
    };
    const sizes = new ResizeObserver(fit);
    for (const node of [root, place, bar]) sizes.observe(node);
    window.addEventListener("resize", soon);
    /* some hosts scroll a container, whose events do not bubble */
    window.addEventListener("scroll", soon, { passive: true, capture: true });
    fit();
    return fit;
};
